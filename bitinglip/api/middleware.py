"""What every request passes on its way in and out. Pure ASGI: no task, no copy of the body."""

import re
from urllib.parse import parse_qsl

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bitinglip.api.errors import failure, translated
from bitinglip.api.request_context import CLIENT_GONE, RequestContext, new_request_id
from bitinglip.api.services import services_in
from bitinglip.errors import (
    BitingLipError,
    InvalidRequest,
    PayloadTooLarge,
    Unavailable,
    UnsupportedMediaType,
)
from bitinglip.settings import Server
from bitinglip.telemetry.redaction import KEY_SHAPE

log = structlog.get_logger(__name__)

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}", re.ASCII)
_CREDENTIAL_NAMES = frozenset({"key", "api_key", "apikey", "api-key", "token", "access_token"})
_KEY = re.compile(KEY_SHAPE, re.ASCII)
_SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]
Headers = list[tuple[bytes, bytes]]
_TYPES = ("http", "websocket")
_STARTS = ("http.response.start", "websocket.http.response.start")  #: the second is a refusal


class RequestMiddleware:
    """Outermost: the request id, the headers of every answer, the times, and the last resort."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in _TYPES:
            await self._app(scope, receive, send)
            return
        exchange = RequestContext(_request_id(scope["headers"]))
        exchange.attach(scope)
        structlog.contextvars.bind_contextvars(request_id=exchange.request_id)
        sender = _sender(scope, exchange, send)
        try:
            await self._app(scope, receive, sender)
        except ClientDisconnect:
            return  # in the middle of its body, or because that took too long
        except Exception as error:  # the last resort of every request
            if not isinstance(error, BitingLipError):
                log.exception("request failed", method=_method(scope), endpoint=endpoint(scope))
            if exchange.status != CLIENT_GONE:
                raise  # the answer has begun: cutting it off is all that is left to say
            await failure(scope, translated(error))(scope, receive, sender)
        finally:
            if exchange.leave is not None:
                exchange.leave()
            _count(scope, exchange)


def _sender(scope: Scope, exchange: RequestContext, send: Send) -> Send:
    async def sender(message: Message) -> None:
        if message["type"] == "websocket.accept":
            exchange.status = 101
            message["headers"] = [(b"x-request-id", exchange.request_id.encode())]
        elif message["type"] in _STARTS:
            exchange.status = message["status"]
            own_seconds = max(0.0, exchange.elapsed - exchange.engine_seconds)
            if services := services_in(scope):
                services.metrics.overhead(own_seconds)
            message["headers"] = [
                *message.get("headers", ()),
                (b"x-request-id", exchange.request_id.encode()),
                (b"x-bitinglip-overhead-ms", b"%.3f" % (own_seconds * 1000)),
                *_SECURITY_HEADERS,
            ]
        await send(message)

    return sender


def _request_id(headers: Headers) -> str:
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value.decode()
    return new_request_id()


def _method(scope: Scope) -> str:
    """A WebSocket begins as a GET."""
    method: str = scope.get("method", "GET")
    return method


def endpoint(scope: Scope) -> str:
    """The route's template; what matches no route has one name, whatever was asked."""
    return getattr(scope.get("route"), "path_format", "_other")


def _count(scope: Scope, exchange: RequestContext) -> None:
    if services := services_in(scope):
        services.metrics.request_finished(
            method=_method(scope),
            endpoint=endpoint(scope),
            status=exchange.status,
            seconds=exchange.elapsed,
        )


class EdgeChecks:
    """Refuses what no route should ever see, before reading any body."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app = app
        self._max_body = server.max_body_bytes
        self._max_upload = server.max_upload_bytes
        bound = server.host if server.host not in ("0.0.0.0", "::") else "localhost"
        names = ["localhost", "127.0.0.1", "::1", bound, *server.allowed_hosts]
        self._hosts = frozenset(name.lower().strip("[]") for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in _TYPES:
            await self._app(scope, receive, send)
            return
        headers: Headers = scope["headers"]
        self._check_started(scope)
        self._check_host(scope, headers)
        _check_query(scope["query_string"])
        limit = self._limit(dict(headers))
        length = _check_body(dict(headers), limit)
        if length is None:
            receive = _counted(receive, limit)
        await self._app(scope, receive, send)

    def _check_started(self, scope: Scope) -> None:
        if scope["path"] != "/livez" and services_in(scope) is None:
            raise Unavailable("The server is starting.")

    def _check_host(self, scope: Scope, headers: Headers) -> None:
        """Only names of ours: a page whose name was pointed at this machine gets nothing."""
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) == 1:
            host = host_name(hosts[0].decode("latin-1"))
            local = scope["server"][0] if scope.get("server") else None
            if host in self._hosts or (host == local and host not in ("0.0.0.0", "::")):
                return
        raise InvalidRequest("The Host header does not name this server.", param="Host")

    def _limit(self, headers: dict[bytes, bytes]) -> int:
        """Bytes that the body may have: forms bring files."""
        form = headers.get(b"content-type", b"").lower().startswith(b"multipart/form-data")
        return self._max_upload if form else self._max_body


def _check_body(headers: dict[bytes, bytes], limit: int) -> int | None:
    """The declared length; None if the body comes in chunks. Raises what is wrong with it."""
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise UnsupportedMediaType()
    length = headers.get(b"content-length")
    if b"transfer-encoding" in headers:
        if length is not None:
            raise InvalidRequest("Content-Length and Transfer-Encoding exclude each other.")
        return None
    if length is None:
        return 0
    if not length.isdigit():
        raise InvalidRequest("Content-Length is not a number.")
    if len(length) > 18 or int(length) > limit:
        raise too_large(limit)
    return int(length)


def too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The request's body is larger than {limit} bytes.", details={"max_body_bytes": limit}
    )


def _counted(receive: Receive, limit: int) -> Receive:
    """Raises PayloadTooLarge, once, when more than ``limit`` bytes have come."""
    left = limit

    async def counted() -> Message:
        nonlocal left
        message = await receive()
        before = left
        left -= len(message.get("body", b""))
        if left < 0 <= before:
            raise too_large(limit)
        return message

    return counted


def host_name(value: str) -> str:
    """The Host header without port and brackets, in lower case."""
    value = value.strip().lower()
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.rpartition(":")[0] if value.count(":") == 1 else value


def _check_query(query: bytes) -> None:
    """No credential in an address: it would end up in logs and histories."""
    if not query:
        return
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name.lower() in _CREDENTIAL_NAMES or _KEY.search(value) or _KEY.search(name):
            raise InvalidRequest(
                "Credentials belong into the Authorization header, never into the address."
            )
