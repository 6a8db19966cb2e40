"""Gather what the server, the model's settings and the caller's key give a request."""

from functools import partial

import msgspec
from starlette.requests import Request

from bitinglip.api.auth import caller_of
from bitinglip.api.lookup import find_model_of
from bitinglip.api.request_context import RequestContext, context_of, request_id_of
from bitinglip.api.services import serving
from bitinglip.errors import InvalidRequest
from bitinglip.scheduling.queue.priority import RequestPriority
from bitinglip.wire.job_context import (
    MOST_SESSION_NAME,
    JobContext,
    caller_context,
    named_session,
)
from bitinglip.wire.prepared import Asking


def job_context(
    request: Request, model: str, priority: RequestPriority = "normal", *, image_side: int = 0
) -> JobContext:
    """Gather what a request for this model needs to become a job."""
    context, caller = context_of(request.scope), caller_of(request)
    services = serving(context)
    make = partial(
        caller_context,
        services.settings,
        services.guard,
        caller,
        model,
        priority,
        image_side=image_side,
        folder=services.files.folder,
        uploads=services.uploads.folder,
    )
    known = services.contexts.of(caller, (model, priority, image_side), make)
    session, span = _session(context), context.span
    if session is None and span is None:
        return known
    trace = None if span is None else span.header
    return msgspec.structs.replace(known, session=session, trace=trace)


def asking(request: Request) -> Asking:
    """Gather what a request has besides its body."""
    model_of, context_for = partial(find_model_of, request), partial(job_context, request)
    return Asking(caller_of(request), model_of, context_for, request_id_of(request))


def _session(context: RequestContext) -> str | None:
    """Return the header that names the request's session. Raises InvalidRequest."""
    value = context.fields.get(b"x-session-id")
    if not value:
        return None
    session = named_session(value.decode("latin-1"))
    if session is None:
        raise InvalidRequest(
            f"'X-Session-ID' may have at most {MOST_SESSION_NAME} characters.", param="X-Session-ID"
        )
    return session
