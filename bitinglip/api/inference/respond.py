"""Responds to native inference requests: with the job's answer, its stream, or a task."""

from functools import partial
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response

from bitinglip.api.job_response import JobResponse
from bitinglip.api.request_context import request_id_of
from bitinglip.api.services import services_of
from bitinglip.api.tasks.tasks import accept_as_task, wants_async
from bitinglip.errors import InvalidRequest
from bitinglip.scheduling.job import Job
from bitinglip.wire.events import NativeView


class _Body(Protocol):
    @property
    def stream(self) -> bool: ...
    @property
    def asynchronous(self) -> bool: ...


def wants_background(request: Request, body: _Body) -> bool:
    """Return whether the client wants a task. Raises InvalidRequest if it wants a stream, too."""
    background = body.asynchronous or wants_async(request)
    if background and body.stream:
        raise InvalidRequest(
            "An asynchronous request has no stream of its own; watch its task.", param="stream"
        )
    return background


async def respond(request: Request, job: Job, *, background: bool) -> Response:
    """Run the job for this response, or accept it as a task."""
    if background:
        return await accept_as_task(request, job.streamed())  # for its watchers
    services = services_of(request)
    view = partial(NativeView, request_id=request_id_of(request), files=services.files)
    return JobResponse(services.dispatcher, services.uploads, job, view)
