"""Authenticates and authorises: finds the caller of a request and requires the
scope of its route."""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, MutableMapping
from dataclasses import replace
from email.utils import format_datetime
from functools import partial, wraps
from typing import Any, Literal, NoReturn, TypeVar

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from bitinglip.access.credentials import Credential
from bitinglip.access.keys import OPERATOR, Caller, KeyRing
from bitinglip.access.limits.policy import LimitClass
from bitinglip.access.scopes import INFERENCE, Scope
from bitinglip.access.tokens import Tokens, is_token
from bitinglip.access.usage.amounts import AUDIO, MEGAPIXELS, REQUESTS, TOKENS
from bitinglip.api.audited import refuse_access, refuse_login
from bitinglip.api.hosts import is_loopback, parse_host
from bitinglip.api.request_context import RequestContext, context_of
from bitinglip.api.services import services_of, serving
from bitinglip.errors import (
    BitingLipError,
    ExpiredApiKey,
    InsufficientScope,
    InvalidApiKey,
    InvalidRequest,
    InvalidToken,
    IpNotAllowed,
    answer,
)

#: the caller of a request without a key, where the operator has turned keys off
ANONYMOUS = Caller("anonymous", "anonymous", OPERATOR, frozenset(Scope))
#: in place of a scope: any valid key or token is enough
ANY_KEY: Literal["any key"] = "any key"
Required = Scope | Literal["any key"]
#: what requests of a scope use of quotas, as far as that is known before their bodies are
_UNITS: dict[Required, tuple[int, ...]] = {
    Scope.TEXT: (REQUESTS, TOKENS),
    Scope.IMAGE: (REQUESTS, MEGAPIXELS),
    Scope.AUDIO: (REQUESTS, AUDIO),
}
_RUNS = LimitClass.INFERENCE  #: a member of an enumeration is found slowly
_OPERATING = (Scope.ADMIN, Scope.CLUSTER_WRITE)  #: attempts at these without the scope are audited
_REQUIRED = "bitinglip.required"  #: in the scope of an admitted request: the scope of its route
#: a caller whose body was complete later is looked at again; open work is at such intervals, too
CONFIRM_SECONDS = 0.25
_LOCAL = "bitinglip.local"  #: in the scope of requests over the home's Unix socket
_LOOPBACK = "127.0.0.1"
_PROXY_HEADERS = frozenset(
    {"forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip"}
)
_PROXY_PREFIXES = ("x-forwarded-", "x-original-", "x-envoy-", "x-cluster-client-")
Handler = Callable[..., Awaitable[Response]]
H = TypeVar("H", bound=Callable[..., Any])
_declared: dict[object, Required] = {}  #: by handler; filled while the routes' modules are imported
_limits: dict[object, LimitClass] = {}  #: the same for the classes of limits


def requires_scope(
    scope: Required, limits: LimitClass | None = None
) -> Callable[[Handler], Handler]:
    """Declare a route's scope and limits; they are checked before anything else of the request.

    A route with an inference scope says which limits it has; those of all others are LIGHT.
    A decorator and not a FastAPI dependency: resolving one costs more than the check itself.
    """
    if limits is None and scope not in INFERENCE:
        limits = LimitClass.LIGHT
    taken = limits or LimitClass.LIGHT

    def guard(handler: Handler) -> Handler:
        @wraps(handler)
        async def guarded(request: Request, **values: Any) -> Response:
            await authorize_limited(request, scope, taken)
            return await handler(request, **values)

        return declare_scope(guarded, scope, limits)

    return guard


def requires_inference_scope(handler: Handler) -> Handler:
    """Require any inference scope, for routes about tasks; the task's kind then decides which."""

    @wraps(handler)
    async def guarded(request: Request, **values: Any) -> Response:
        caller = identify(request)
        await admit(request, caller, LimitClass.LIGHT)
        request.scope["bitinglip.caller"] = check_inference(caller)
        return await handler(request, **values)

    return declare_scope(guarded, Scope.TEXT, LimitClass.LIGHT)


def check_inference(caller: Caller) -> Caller:
    """Return the caller. Raises InsufficientScope if they have no inference scope."""
    if not any(caller.may(scope) for scope in INFERENCE):
        raise InsufficientScope(
            f"This route needs one of the scopes {', '.join(INFERENCE)}.",
            details={"any_of": INFERENCE},
        )
    return caller


def text_caller(tokens: Tokens, keys: KeyRing, credential: Credential) -> Caller | None:
    """Return who may still run texts with a credential that was good once, or None."""
    return present_caller(tokens, keys, credential, Scope.TEXT)


def present_caller(
    tokens: Tokens, keys: KeyRing, credential: Credential, scope: Scope
) -> Caller | None:
    """Return who may still use a scope with a credential that was good once, or None."""
    if not tokens.is_valid(credential):
        return None
    caller = keys.caller(credential) or ANONYMOUS  # who has no key
    return replace(caller, token=credential.token) if caller.may(scope) else None


def declare_scope(handler: H, scope: Required, limits: LimitClass | None = None) -> H:
    """Record a handler's scope and limits; nothing is enforced where it has checks of its own."""
    _declared[handler] = scope
    if limits is not None:
        _limits[handler] = limits
    return handler


def declared_scope(route: BaseRoute) -> Required | None:
    """Return the scope that a route's handler declares; None if it declares none."""
    return _declared.get(getattr(route, "endpoint", None))


def declared_limits(route: BaseRoute) -> LimitClass | None:
    """Return the class of limits that a route's handler declares; None if it declares none."""
    return _limits.get(getattr(route, "endpoint", None))


async def authorize_limited(request: Request, scope: Required, limits: LimitClass) -> None:
    """Admit the caller and record them.

    Raises InsufficientScope, or what ``identify`` and ``admit`` raise.
    """
    caller = identify(request)
    may = scope == ANY_KEY or caller.may(scope)
    units = _UNITS.get(scope, ()) if may and limits is _RUNS else ()
    await admit(request, caller, limits, units)
    if not may:
        _refuse_scope(request, caller, scope)
    http_scope = request.scope
    http_scope["bitinglip.caller"] = caller
    http_scope[_REQUIRED] = scope


def _refuse_scope(request: Request, caller: Caller, scope: Required) -> NoReturn:
    """Raise InsufficientScope for a caller without the scope of the route."""
    error = InsufficientScope(f"This route needs the scope {scope}.", details={"required": scope})
    if scope in _OPERATING:
        refuse_access(request, caller, error)
    raise error


def confirm_caller(request: Request) -> None:
    """Look at the caller again once the body is there, if that took its time.

    A body may be held back for minutes, in which its key is revoked, expires or is narrowed. What
    comes sooner is over within the time that a revocation has. Raises what ``authorize_limited``
    raises for the caller; no limit is taken twice.
    """
    if context_of(request.scope).elapsed < CONFIRM_SECONDS:
        return
    caller, scope = identify(request), request.scope.get(_REQUIRED)
    if scope is None:
        check_inference(caller)
    elif scope != ANY_KEY and not caller.may(scope):
        _refuse_scope(request, caller, scope)
    request.scope["bitinglip.caller"] = caller


def caller_of(request: Request) -> Caller:
    caller: Caller = request.scope["bitinglip.caller"]
    return caller


def identify(request: HTTPConnection) -> Caller:
    """Identify the caller by the credential; ``admit`` comes next.

    Raises InvalidApiKey, ExpiredApiKey, InvalidToken or IpNotAllowed; RateLimitExceeded for a
    flood of them.
    """
    http_scope = request.scope
    context = context_of(http_scope)
    services = serving(context)
    credential = _credential(context, http_scope["headers"])
    if credential is None and not services.settings.security.require_api_key:
        return ANONYMOUS
    if credential is None:
        raise InvalidApiKey()
    known = services.tokens if is_token(credential) else services.keys
    try:
        caller = known.authenticate(credential)
        if caller.retiring is not None:
            context.notices = retirement_headers(caller)
        if caller.ip_ranges is not None:
            check_address(request, caller)
    except (InvalidApiKey, ExpiredApiKey, InvalidToken, IpNotAllowed) as error:
        raise failed_login(request, error, credential) from None
    services.metrics.user_seen(caller.key_id)
    return caller


def failed_login(
    request: HTTPConnection, error: BitingLipError, credential: str | None = None
) -> BitingLipError:
    """Count a wrong credential; return the error to raise: this one, or RateLimitExceeded."""
    refuse_login(request, credential, answer(error).code)
    address = request.client.host if request.client is not None else None
    logins = services_of(request).logins
    counted = logins.count(address, error)
    if counted is not error and address is not None:
        context_of(request.scope).limit_headers = logins.headers(address)
    return counted


async def admit(
    request: HTTPConnection, caller: Caller, limits: LimitClass, units: Iterable[int] = ()
) -> None:
    """Take the request from the caller's limits until it ends; it uses ``units`` of quotas.

    Raises RateLimitExceeded, ConcurrencyLimitExceeded or QuotaExceeded. A request that the server
    fails (5xx), or a quota refuses, is not charged; one at fault itself (4xx), or that had all its
    time (504) is, or a client in a loop would have no limit.
    """
    http_scope = request.scope
    context = context_of(http_scope)
    services = serving(context)
    admission, tokens = services.admission, services.token_rates
    route = getattr(http_scope.get("route"), "path_format", "")
    context.tier = caller.tier
    admitted = await admission.enter(caller, limits, route, units)
    context.limit_headers = admitted.headers
    if limits is _RUNS and tokens.has_limit(caller.tier):
        context.token_headers = partial(tokens.headers, caller.key_id)
    if admitted.refusal is not None:
        raise admitted.refusal
    context.leave = partial(admission.leave, admitted)


def check_address(connection: HTTPConnection, caller: Caller) -> None:
    """Raise IpNotAllowed for a caller whose key is not for the address of the peer.

    No header is believed but those of trusted proxies. A program that comes over the home's socket
    has the loopback address.
    """
    if caller.ip_ranges is None:
        return
    peer = connection.client.host if connection.client else ""
    address = _LOOPBACK if connection.scope.get(_LOCAL) else peer
    if not caller.may_call_from(address):
        raise IpNotAllowed(details={"address": address})


def retirement_headers(caller: Caller) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers that say that the caller's secret was replaced, and when it ends."""
    if caller.retiring is None:
        return ()
    since, until = caller.retiring
    return (
        (b"deprecation", b"@%d" % since.timestamp()),
        (b"sunset", format_datetime(until, usegmt=True).encode()),
    )


def has_credential(request: HTTPConnection) -> bool:
    return _credential(context_of(request.scope), request.scope["headers"]) is not None


def _credential(context: RequestContext, headers: Collection[tuple[bytes, bytes]]) -> str | None:
    """Return what the caller sent. Raises InvalidRequest for two that differ."""
    fields = context.fields
    key, bearer = fields.get(b"x-api-key"), fields.get(b"authorization")
    if len(fields) < len(headers) or (key is not None and bearer is not None):
        return _only_credential(headers)
    return _of_bearer(bearer) if key is None else key.decode("latin-1")


def _only_credential(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    found: set[str | None] = set()
    for name, value in headers:
        if name == b"x-api-key":
            found.add(value.decode("latin-1"))
        elif name == b"authorization":
            found.add(_of_bearer(value))
    if len(found) > 1:
        raise InvalidRequest("The request holds two different credentials; send one.")
    return found.pop() if found else None


def _of_bearer(value: bytes | None) -> str | None:
    """Return the credential in an Authorization header. Raises InvalidApiKey for another kind."""
    if value is None:
        return None
    scheme, _, credential = value.decode("latin-1").partition(" ")
    if scheme.lower() != "bearer":
        raise InvalidApiKey()
    return credential.strip()


def mark_as_local(scope: MutableMapping[str, Any]) -> None:
    """Record that a request came over the home's Unix socket."""
    scope[_LOCAL] = True


def is_local(scope: Mapping[str, Any]) -> bool:
    """Return whether a request came over the home's Unix socket."""
    return _LOCAL in scope


def from_this_machine(request: Request) -> bool:
    """Return whether a program on this machine sent the request itself.

    That is certain on the Unix socket. On TCP, a reverse proxy on this machine looks the same if
    it adds no header and speaks HTTP/1.1; ``server.trust_loopback`` is false for such ones.
    """
    if request.scope.get(_LOCAL):
        return True
    if not services_of(request).settings.server.trust_loopback:
        return False
    if request.client is None or not is_loopback(request.client.host):
        return False
    # Proxies speak HTTP/1.0 by tradition, and nearly no client does.
    if request.scope["http_version"] == "1.0" or any(map(_is_of_a_proxy, request.headers)):
        return False
    return is_loopback(parse_host(request.headers.get("host", "")) or "")


def _is_of_a_proxy(header: str) -> bool:
    return header in _PROXY_HEADERS or header.startswith(_PROXY_PREFIXES)
