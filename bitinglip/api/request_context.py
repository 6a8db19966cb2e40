"""Holds the context of one request: its id, its timings and the status of its response."""

import random
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import HTTPConnection

if TYPE_CHECKING:
    from bitinglip.api.services import Services
    from bitinglip.tracing.tracer import RequestSpan

CLIENT_GONE = 499  #: the client disconnected before the response; only counted, never sent
#: an extension of ASGI: the message that begins a response may hold its body under this name; then
#: its headers say nothing of the length and of the connection
WHOLE_BODY = "bitinglip.whole_body"
_KEY = "bitinglip.context"


def new_request_id() -> str:
    """Make an id that is unique and ordered by time, so that logs sort; it is no secret."""
    return f"req-{time.time_ns() // 1_000_000:012x}{random.getrandbits(64):016x}"


class RequestContext(msgspec.Struct, eq=False):
    """Describes one request; times in seconds."""

    request_id: str
    services: "Services | None"  #: None while the server starts
    fields: Mapping[bytes, bytes]  #: the last header of each name
    cors: tuple[tuple[bytes, bytes], ...] = ()  #: headers for the browser
    began: float = msgspec.field(default_factory=time.perf_counter)
    engine_seconds: float = 0.0  #: queueing and computing, which is not the gateway's own time
    status: int = CLIENT_GONE
    #: gives back the caller's place, once admitted, and with ``refund=True`` the charge
    leave: Callable[..., None] | None = None
    limit_headers: tuple[tuple[bytes, bytes], ...] = ()
    #: makes those of the key's rate in tokens, when the response begins
    token_headers: Callable[[], tuple[tuple[bytes, bytes], ...]] | None = None
    tier: str = "none"  #: of the caller, once known
    #: the model and, once it is accepted, the id of its job, and never the job: timers keep
    #: contexts, and so its input
    job: tuple[str, str | None] | None = None
    spared: bool = False  #: a quota, or the rate in tokens, has refused it: nothing is charged
    release: Callable[[], None] | None = None  #: removes what the request has left on disk

    notices: tuple[tuple[bytes, bytes], ...] = ()  #: headers about the caller's credential
    span: "RequestSpan | None" = None  #: of a request that is traced

    def attach(self, scope: MutableMapping[str, Any]) -> None:
        scope[_KEY] = self

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.began


def context_of(scope: Mapping[str, Any]) -> RequestContext:
    return scope[_KEY]  # type: ignore[no-any-return]


def request_id_of(request: HTTPConnection) -> str:
    return context_of(request.scope).request_id


def route_path(scope: Mapping[str, Any]) -> str:
    """Return the path without the prefix that a proxy has put before it, if it left it there."""
    path: str = scope["path"]
    prefix: str = scope["root_path"]
    return path[len(prefix) :] if prefix and path.startswith(f"{prefix}/") else path


def has_caller(scope: Mapping[str, Any]) -> bool | None:
    """Return whether a request's caller is known; None if it has not been looked at yet."""
    context: RequestContext | None = scope.get(_KEY)
    if context is None:
        return None
    return context.leave is not None or "bitinglip.caller" in scope
