"""What all native inference routes do with the job that a request became."""

from dataclasses import replace
from functools import partial
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response

from bitinglip.api.answering import JobAnswer
from bitinglip.api.deps import request_id_of, services_of
from bitinglip.api.native.tasks import accepted, wants_async
from bitinglip.errors import InvalidRequest
from bitinglip.scheduling.job import Job
from bitinglip.wire.events import NativeView


class _Body(Protocol):
    @property
    def stream(self) -> bool: ...
    @property
    def asynchronous(self) -> bool: ...


def runs_behind(request: Request, body: _Body) -> bool:
    """Whether the client wants a task instead of an answer. Raises InvalidRequest if it wants a
    stream too."""
    background = body.asynchronous or wants_async(request)
    if background and body.stream:
        raise InvalidRequest(
            "An asynchronous request has no stream of its own; watch its task.", param="stream"
        )
    return background


async def respond(request: Request, job: Job, *, background: bool) -> Response:
    """The job's answer, its stream, or the task that it became."""
    if background:
        return await accepted(request, replace(job, stream=True))  # for those who watch
    services = services_of(request)
    view = partial(NativeView, request_id=request_id_of(request), files=services.files)
    return JobAnswer(services.dispatcher, job, view)
