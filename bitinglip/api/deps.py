"""What handlers ask for: the services, the caller, a checked body, a page of a list."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import Scope as HttpScope

from bitinglip.access.keys import OPERATOR, Caller, KeyRing
from bitinglip.access.scopes import INFERENCE, Scope
from bitinglip.access.tickets import Tickets
from bitinglip.api.exchange import exchange_of
from bitinglip.db.database import Database
from bitinglip.errors import (
    InsufficientScope,
    InvalidApiKey,
    InvalidRequest,
    UnsupportedMediaType,
    UnsupportedParameter,
)
from bitinglip.home import Home
from bitinglip.results.files import Files
from bitinglip.scheduling.dispatch.dispatcher import Dispatcher
from bitinglip.scheduling.models.operations import Operations
from bitinglip.scheduling.placement.footprints import Footprints
from bitinglip.settings import Settings
from bitinglip.tasks.tasks import Tasks
from bitinglip.telemetry.metrics import Metrics
from bitinglip.wire.parse import parse
from model_store.store import ModelStore

MAX_LIMIT = 1000
MAX_OFFSET = 2**31
#: who asks where the operator has turned keys off
_ANYBODY = Caller("anonymous", "anonymous", OPERATOR, frozenset(Scope))
_LOOPBACK = frozenset({"127.0.0.1", "::1", "::ffff:127.0.0.1"})
_PROXY_HEADERS = ("x-forwarded-for", "forwarded", "x-real-ip", "x-forwarded-host", "via")

M = TypeVar("M", bound=BaseModel)
Handler = Callable[..., Awaitable[Response]]
H = TypeVar("H", bound=Callable[..., Any])


@dataclass(frozen=True)
class Services:
    """All parts of the running server; at ``app.state.services`` once it is up."""

    settings: Settings
    home: Home
    store: ModelStore
    keys: KeyRing
    dispatcher: Dispatcher
    operations: Operations
    footprints: Footprints
    metrics: Metrics
    db: Database
    tasks: Tasks
    tickets: Tickets
    files: Files


def services_of(request: HTTPConnection) -> Services:
    services: Services = request.app.state.services
    return services


def services_in(scope: HttpScope) -> Services | None:
    """The services, or None while the server is not up yet."""
    return getattr(scope["app"].state, "services", None)


# ---- who asks ------------------------------------------------------------------------------------


def needs(scope: Scope) -> Callable[[Handler], Handler]:
    """Declares a route's scope, checked before anything else of the request is looked at.

    A decorator and not a FastAPI dependency: resolving one costs more than the check itself.
    """

    def guard(handler: Handler) -> Handler:
        @wraps(handler)
        async def guarded(request: Request, **values: Any) -> Response:
            authorize(request, scope)
            return await handler(request, **values)

        return declare(guarded, scope)

    return guard


def needs_inference(handler: Handler) -> Handler:
    """For routes about tasks: any inference scope; in the end the task's kind says which."""

    @wraps(handler)
    async def guarded(request: Request, **values: Any) -> Response:
        request.scope["bitinglip.caller"] = check_inference(identify(request))
        return await handler(request, **values)

    return declare(guarded, Scope.TEXT)


def check_inference(caller: Caller) -> Caller:
    """The caller, if they have any inference scope. Raises InsufficientScope."""
    if not any(caller.may(scope) for scope in INFERENCE):
        raise InsufficientScope(
            f"This route needs one of the scopes {', '.join(INFERENCE)}.",
            details={"any_of": INFERENCE},
        )
    return caller


def declare(handler: H, scope: Scope) -> H:
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
    """Identify the caller by the credential. Raises InvalidApiKey or ExpiredApiKey."""
    services = services_of(request)
    credential = _credential(request)
    if credential is None and not services.settings.security.require_api_key:
        return _ANYBODY
    if credential is None:
        raise InvalidApiKey()
    caller = services.keys.authenticate(credential)
    services.metrics.user_seen(caller.key_id)
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


# ---- what is asked -------------------------------------------------------------------------------


async def read_body(request: Request, model: type[M]) -> M:
    """The request's JSON body, checked. Raises what wire.parse raises, or UnsupportedMediaType."""
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType()
    return parse(model, await request.body())


@dataclass(frozen=True)
class Page:
    """Which part of a list is asked for."""

    limit: int
    offset: int

    def of(self, rows: Sequence[Any]) -> Response:
        """``{data, total, limit, offset}`` with this part of the rows."""
        return self.part(rows[self.offset : self.offset + self.limit], len(rows))

    def part(self, rows: Sequence[Any], total: int) -> Response:
        """The same, where the rows are this part already."""
        return json_answer(
            {"data": rows, "total": total, "limit": self.limit, "offset": self.offset}
        )


def read_page(request: Request, *filters: str) -> Page:
    """``limit`` and ``offset``; query parameters beside these and ``filters`` are refused."""
    check_query(request, "limit", "offset", *filters)
    return Page(
        _number(request, "limit", 50, least=1, most=MAX_LIMIT),
        _number(request, "offset", 0, least=0, most=MAX_OFFSET),
    )


def check_query(request: HTTPConnection, *known: str) -> None:
    for name in request.query_params:
        if name not in known:
            shown = name[:64]
            raise UnsupportedParameter(f"'{shown}' is no parameter of this route.", param=shown)


def _number(request: Request, name: str, default: int, *, least: int, most: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if text.isascii() and text.isdigit() and len(text) < 12 and least <= int(text) <= most:
        return int(text)
    raise InvalidRequest(f"'{name}' must be a number from {least} to {most}.", param=name)


# ---- answers -------------------------------------------------------------------------------------


def json_answer(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")


def request_id_of(request: HTTPConnection) -> str:
    return exchange_of(request.scope).request_id
