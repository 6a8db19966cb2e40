"""Who the caller is and which scope a route requires."""

from collections.abc import Awaitable, Callable
from functools import partial, wraps
from typing import Any, TypeVar

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from bitinglip.access.keys import OPERATOR, Caller
from bitinglip.access.scopes import INFERENCE, Scope
from bitinglip.api.request_context import context_of
from bitinglip.api.services import services_of
from bitinglip.errors import (
    InsufficientScope,
    InvalidApiKey,
    InvalidRequest,
)

#: who asks where the operator has turned keys off
ANONYMOUS = Caller("anonymous", "anonymous", OPERATOR, frozenset(Scope))


_LOOPBACK = frozenset({"127.0.0.1", "::1", "::ffff:127.0.0.1"})


_PROXY_HEADERS = ("x-forwarded-for", "forwarded", "x-real-ip", "x-forwarded-host", "via")


Handler = Callable[..., Awaitable[Response]]


H = TypeVar("H", bound=Callable[..., Any])


def requires_scope(scope: Scope) -> Callable[[Handler], Handler]:
    """Declares a route's scope, checked before anything else of the request is looked at.

    A decorator and not a FastAPI dependency: resolving one costs more than the check itself.
    """

    def guard(handler: Handler) -> Handler:
        @wraps(handler)
        async def guarded(request: Request, **values: Any) -> Response:
            authorize(request, scope)
            return await handler(request, **values)

        return declare_scope(guarded, scope)

    return guard


def requires_inference_scope(handler: Handler) -> Handler:
    """For routes about tasks: any inference scope; in the end the task's kind says which."""

    @wraps(handler)
    async def guarded(request: Request, **values: Any) -> Response:
        request.scope["bitinglip.caller"] = check_inference(identify(request))
        return await handler(request, **values)

    return declare_scope(guarded, Scope.TEXT)


def check_inference(caller: Caller) -> Caller:
    """The caller, if they have any inference scope. Raises InsufficientScope."""
    if not any(caller.may(scope) for scope in INFERENCE):
        raise InsufficientScope(
            f"This route needs one of the scopes {', '.join(INFERENCE)}.",
            details={"any_of": INFERENCE},
        )
    return caller


def declare_scope(handler: H, scope: Scope) -> H:
    """Note a handler's scope without enforcing it; for one that checks by rules of its own."""
    handler.needed_scope = scope  # type: ignore[attr-defined]
    return handler


def authorize(request: Request, scope: Scope) -> None:
    """Note who asks. Raises InsufficientScope if they may not, or what ``identify`` raises."""
    caller = identify(request)
    if not caller.may(scope):
        raise InsufficientScope(f"This route needs the scope {scope}.", details={"required": scope})
    request.scope["bitinglip.caller"] = caller


def caller_of(request: Request) -> Caller:
    caller: Caller = request.scope["bitinglip.caller"]
    return caller


def identify(request: HTTPConnection) -> Caller:
    """Identify the caller by the credential, and count the request as theirs until it ends.

    Raises InvalidApiKey, ExpiredApiKey or ConcurrencyLimitExceeded.
    """
    services = services_of(request)
    credential = _credential(request)
    if credential is None and not services.settings.security.require_api_key:
        return ANONYMOUS
    if credential is None:
        raise InvalidApiKey()
    caller = services.keys.authenticate(credential)
    services.metrics.user_seen(caller.key_id)
    context = context_of(request.scope)
    if context.leave is None:
        services.concurrency.enter(caller)
        context.leave = partial(services.concurrency.leave, caller)
    return caller


def has_credential(request: HTTPConnection) -> bool:
    return _credential(request) is not None


def _credential(request: HTTPConnection) -> str | None:
    found = set(request.headers.getlist("x-api-key"))
    for value in request.headers.getlist("authorization"):
        scheme, _, token = value.partition(" ")
        if scheme.lower() != "bearer":
            raise InvalidApiKey()
        found.add(token.strip())
    if len(found) > 1:
        raise InvalidRequest("The request holds two different credentials; send one.")
    return found.pop() if found else None


def from_this_machine(request: Request) -> bool:
    """The connection comes from loopback, and no proxy says that it speaks for somebody else."""
    if request.client is None or request.client.host not in _LOOPBACK:
        return False
    return not any(name in request.headers for name in _PROXY_HEADERS)
