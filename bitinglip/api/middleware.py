"""Middleware of every request, as pure ASGI: it makes no task and no copy of the body."""

import re
from urllib.parse import parse_qsl

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bitinglip.api.errors import error_response, to_error
from bitinglip.api.hosts import Origins, normal_name, parse_host
from bitinglip.api.request_context import CLIENT_GONE, RequestContext, new_request_id
from bitinglip.api.services import services_in
from bitinglip.errors import (
    BitingLipError,
    InsufficientScope,
    InvalidRequest,
    PayloadTooLarge,
    Unavailable,
    UnsupportedMediaType,
)
from bitinglip.settings import Server
from bitinglip.telemetry.redaction import KEY_SHAPE, TOKEN_SHAPE

log = structlog.get_logger(__name__)

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}", re.ASCII)
_CREDENTIAL_NAMES = frozenset({"key", "api_key", "apikey", "api-key", "token", "access_token"})
_LONGEST_QUERY = 8192  #: bytes
_MOST_PARAMETERS = 100  #: of a query; routes know a few, and each takes time before any key
_SECRET = re.compile(f"{KEY_SHAPE}|{TOKEN_SHAPE}", re.ASCII)
_SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]
#: for each response that does not say otherwise: it may hold what only one caller may see
_NO_STORE = (b"cache-control", b"no-store")
Headers = list[tuple[bytes, bytes]]
_TYPES = ("http", "websocket")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})  #: they change nothing
_FOREIGN_SITES = frozenset({b"cross-site", b"same-site"})
_STARTS = ("http.response.start", "websocket.http.response.start")  #: the second is a refusal


class RequestMiddleware:
    """Adds the request id, headers and timings, and answers exceptions that nothing else caught."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in _TYPES:
            await self._app(scope, receive, send)
            return
        context = RequestContext(_request_id(scope["headers"]))
        context.attach(scope)
        structlog.contextvars.bind_contextvars(request_id=context.request_id)
        sender = _sender(scope, context, send)
        try:
            await self._app(scope, receive, sender)
        except ClientDisconnect:
            return  # in the middle of its body, or because that took too long
        except Exception as error:  # nothing above turns an exception into a response
            if not isinstance(error, BitingLipError):
                log.exception("request failed", method=_method(scope), endpoint=endpoint(scope))
            if context.status != CLIENT_GONE:
                raise  # the response has begun and can only be cut off
            await error_response(scope, to_error(error))(scope, receive, sender)
        finally:
            if context.leave is not None:
                context.leave(refund=context.status >= 500 or context.spared)
            if context.release is not None:
                context.release()
            _count(scope, context)


def _sender(scope: Scope, context: RequestContext, send: Send) -> Send:
    async def sender(message: Message) -> None:
        if message["type"] == "websocket.accept":
            context.status = 101
            message["headers"] = [
                (b"x-request-id", context.request_id.encode()),
                *context.limit_headers,
                *context.notices,
            ]
        elif message["type"] in _STARTS:
            context.status = message["status"]
            own_seconds = max(0.0, context.elapsed - context.engine_seconds)
            if services := services_in(scope):
                services.metrics.overhead(own_seconds)
            headers = message.get("headers", ())
            if not any(name == b"cache-control" for name, _ in headers):
                headers = [*headers, _NO_STORE]
            message["headers"] = [
                *headers,
                (b"x-request-id", context.request_id.encode()),
                (b"x-bitinglip-overhead-ms", b"%.3f" % (own_seconds * 1000)),
                *context.limit_headers,
                *_SECURITY_HEADERS,
                *context.notices,
            ]
        await send(message)

    return sender


def _request_id(headers: Headers) -> str:
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value.decode()
    return new_request_id()


def _method(scope: Scope) -> str:
    """Return the method; a WebSocket begins as a GET."""
    method: str = scope.get("method", "GET")
    return method


def endpoint(scope: Scope) -> str:
    """Return the route's template; ``_other`` for every path that matches no route."""
    return getattr(scope.get("route"), "path_format", "_other")


def _count(scope: Scope, context: RequestContext) -> None:
    if services := services_in(scope):
        services.metrics.request_finished(
            method=_method(scope),
            endpoint=endpoint(scope),
            status=context.status,
            seconds=context.elapsed,
        )


class EdgeChecks:
    """Refuses malformed and foreign requests before any body is read."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app = app
        self._max_body = server.max_body_bytes
        self._max_upload = server.max_upload_bytes
        bound = server.host if server.host not in ("0.0.0.0", "::") else "localhost"
        names = ["localhost", "127.0.0.1", "::1", bound, *server.allowed_hosts]
        self._hosts = frozenset(normal_name(name) for name in names)
        self._origins = Origins(server.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in _TYPES:
            await self._app(scope, receive, send)
            return
        headers: Headers = scope["headers"]
        self._check_started(scope)
        fields = dict(headers)
        if len(fields) < len(headers):
            _check_single(headers)
        self._check_host(scope, headers)
        self._check_origin(scope, fields)
        _check_query(scope["query_string"])
        limit = self._limit(fields)
        length = _check_body(fields, limit)
        if length is None:
            receive = _counted(receive, limit)
        await self._app(scope, receive, send)

    def _check_started(self, scope: Scope) -> None:
        if scope["path"] != "/livez" and services_in(scope) is None:
            raise Unavailable("The server is starting.")

    def _check_host(self, scope: Scope, headers: Headers) -> None:
        """Refuse names that are not ours, as a page under DNS rebinding would send."""
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) == 1:
            host = parse_host(hosts[0].decode("latin-1"))
            local = scope["server"][0] if scope.get("server") else None
            if host in self._hosts or (host and host == local and host not in ("0.0.0.0", "::")):
                return
        raise InvalidRequest("The Host header does not name this server.", param="Host")

    def _check_origin(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Refuse pages of other sites: WebSockets, and requests that change something.

        Browsers send these without asking first (CORS asks only about some requests, and never
        about WebSockets), and where keys are off nothing else tells a page from its user.
        """
        if scope["type"] == "http" and scope["method"] in _SAFE_METHODS:
            return
        origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
        if origin is None and site is None:
            return
        host = headers[b"host"].decode("latin-1")
        text = None if origin is None else origin.decode("latin-1")
        if not self._origins.accept(text, host, other_site=site in _FOREIGN_SITES):
            raise InsufficientScope(
                "Pages of this origin may not use the API; server.cors_origins allows more.",
                param="Origin",
            )

    def _limit(self, headers: dict[bytes, bytes]) -> int:
        """Return the bytes that the body may have; forms bring files."""
        form = headers.get(b"content-type", b"").lower().startswith(b"multipart/form-data")
        return self._max_upload if form else self._max_body


def _check_single(headers: Headers) -> None:
    """Refuse two types of one body: the bound would be that of one, and the reader the other's."""
    if sum(name == b"content-type" for name, _ in headers) > 1:
        raise InvalidRequest("The request has two Content-Type headers.", param="Content-Type")


def _check_body(headers: dict[bytes, bytes], limit: int) -> int | None:
    """Check the declared length and return it; None if the body comes in chunks.

    Raises InvalidRequest, PayloadTooLarge or UnsupportedMediaType.
    """
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
    """Wrap ``receive`` so that it raises PayloadTooLarge, once, after ``limit`` bytes."""
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


def _check_query(query: bytes) -> None:
    """Refuse credentials in an address: they would end up in logs and histories.

    A query that is too much to look through is refused as it is.
    """
    if not query:
        return
    if len(query) > _LONGEST_QUERY or query.count(b"&") >= _MOST_PARAMETERS:
        raise InvalidRequest(
            f"The address has more than {_MOST_PARAMETERS} parameters or {_LONGEST_QUERY} bytes "
            "of them."
        )
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name.lower() in _CREDENTIAL_NAMES or _SECRET.search(value) or _SECRET.search(name):
            raise InvalidRequest(
                "Credentials belong in the Authorization header, never in the address."
            )
