"""Gather what the server, the model's settings and the caller's key give a request."""

from starlette.requests import Request

from bitinglip.api.auth import caller_of
from bitinglip.api.request_context import context_of
from bitinglip.api.services import services_of
from bitinglip.errors import InvalidRequest
from bitinglip.scheduling.queue.priority import RequestPriority, priority_of, tier_of
from bitinglip.wire.job_context import MOST_SESSION_NAME, JobContext, named_session


def job_context(
    request: Request, model: str, priority: RequestPriority = "normal", *, image_side: int = 0
) -> JobContext:
    """Gather what a request for this model needs to become a job."""
    services, caller = services_of(request), caller_of(request)
    settings = services.settings
    tier = tier_of(settings.limits.tiers, caller.tier)
    return JobContext(
        model=model,
        model_settings=settings.model(model),
        image_side=image_side,
        limits=settings.limits,
        tier=tier,
        key_id=caller.key_id,
        credential=caller.credential,
        timeout=settings.server.request_timeout,
        priority=priority_of(tier, priority),
        guard=services.guard.modes(caller.tier, tier, caller.guard or "off"),
        session=_session(request),
        folder=services.files.folder,
        uploads=services.uploads.folder,
    )


def _session(request: Request) -> str | None:
    """Return the header that names the request's session. Raises InvalidRequest."""
    value = context_of(request.scope).fields.get(b"x-session-id")
    if not value:
        return None
    session = named_session(value.decode("latin-1"))
    if session is None:
        raise InvalidRequest(
            f"'X-Session-ID' may have {MOST_SESSION_NAME} characters.", param="X-Session-ID"
        )
    return session
