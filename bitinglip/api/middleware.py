"""The door that each request and WebSocket goes through, as pure ASGI.

It makes no task and no copy of the body. There is no stack of middleware behind it: one layer
costs as much as a check of a key, so what all requests need stands here, in order.
"""

import re
import time
from collections.abc import Awaitable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

import structlog
from fastapi.routing import APIRoute
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bitinglip.access.narrowing import address_allowed
from bitinglip.api.audited import refuse_login
from bitinglip.api.auth import is_local
from bitinglip.api.cors import Cors
from bitinglip.api.direct_routes import direct_routes
from bitinglip.api.errors import error_response, to_error
from bitinglip.api.hosts import Hosts, Origins, foreign_host, foreign_page, parse_host
from bitinglip.api.proxies import Proxies
from bitinglip.api.request_context import (
    CLIENT_GONE,
    RequestContext,
    context_of,
    new_request_id,
    route_path,
)
from bitinglip.api.services import Services
from bitinglip.errors import (
    InternalError,
    InvalidRequest,
    IpNotAllowed,
    PayloadTooLarge,
    Unavailable,
    UnsupportedMediaType,
    answer,
)
from bitinglip.settings import Security, Server, Settings
from bitinglip.telemetry.redaction import KEY_SHAPE, TOKEN_SHAPE
from bitinglip.telemetry.request_lines import write_line

if TYPE_CHECKING:
    from bitinglip.tracing.tracer import Tracer

log = structlog.get_logger(__name__)

#: what log lines take for the request's id; as bind_contextvars sets it, which takes its time
_logged_id: ContextVar[str] = ContextVar(f"{structlog.contextvars.STRUCTLOG_KEY_PREFIX}request_id")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}", re.ASCII)
_CREDENTIAL_NAMES = frozenset({"key", "api_key", "apikey", "api-key", "token", "access_token"})
_MOST_ACCEPTED = 64  #: Host headers that need no other look
_LONGEST_QUERY = 8192  #: bytes
_MOST_PARAMETERS = 100  #: of a query; routes know a few, and each takes time before any key
_SECRET = re.compile(f"{KEY_SHAPE}|{TOKEN_SHAPE}", re.ASCII)
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]
#: for each response that does not say otherwise: it may hold what only one caller may see
_NO_STORE = (b"cache-control", b"private, no-store")
Headers = list[tuple[bytes, bytes]]
Fields = Mapping[bytes, bytes]  #: the last header of each name
_TYPES = ("http", "websocket")
_JSON = b"application/json"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})  #: they change nothing
_FOREIGN_SITES = frozenset({b"cross-site", b"same-site"})
_STARTS = ("http.response.start", "websocket.http.response.start")  #: the second is a refusal


class Door:
    """Adds the request id, headers and timings, checks, and answers exceptions.

    A route that needs nothing of FastAPI is called straight away (see ``direct_routes``); ``rest``
    serves all others.
    """

    def __init__(self, app: Starlette, settings: Settings, rest: ASGIApp) -> None:
        server = settings.server
        self._app = app
        self._edge = EdgeChecks(server, settings.security)
        self.cors = Cors(server.cors_origins)
        self._proxies = Proxies(server.trusted_proxies)
        self._direct = direct_routes(app.routes)
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self._app
        if scope["type"] not in _TYPES:
            await self._rest(scope, receive, send)
            return
        method = _method(scope)
        if method == "HEAD":  # answered as GET is; the connection leaves the body out
            method, scope = "GET", {**scope, "method": "GET"}
        services: Services | None = getattr(self._app.state, "services", None)
        fields = dict(scope["headers"])
        context = RequestContext(_request_id(fields), services, fields, self.cors.headers(fields))
        context.attach(scope)
        _logged_id.set(context.request_id)
        if services is not None and services.tracer is not None:
            _begin_trace(services.tracer, scope, context)
        sender = _sender(context, send)
        try:
            if self._proxies.apply(scope):
                context.fields = dict(scope["headers"])
            receive = self._edge.check(scope, receive, context)
            app = self._choose(scope, method, context)
            if isinstance(app, APIRoute):
                app = await app.endpoint(Request(scope, receive, sender))
            await app(scope, receive, sender)
        except ClientDisconnect:
            return  # in the middle of its body, or because that took too long
        except Exception as error:  # nothing above turns an exception into a response
            _log_failure(scope, error)
            if context.status != CLIENT_GONE:
                raise  # the response has begun and can only be cut off
            # No name for it here: with the error's traceback that is a cycle, which keeps the
            # request's body until the collector comes by.
            await error_response(scope, to_error(error))(scope, receive, sender)
        finally:
            _end(scope, method, context)

    def _choose(self, scope: Scope, method: str, context: RequestContext) -> APIRoute | ASGIApp:
        """Return what serves a request: a route that is called directly, or an application."""
        if method == "OPTIONS":
            response = self.cors.preflight(method, context.fields)
            if response is not None:
                return response
        path = route_path(scope) if scope["root_path"] else scope["path"]
        route = self._direct.get((method, path))
        if route is None or scope["type"] != "http":
            return self._rest
        scope["route"] = route
        return route


def _begin_trace(tracer: "Tracer", scope: Scope, context: RequestContext) -> None:
    context.span = span = tracer.begin(scope["path"], context.fields)
    if span is not None:
        structlog.contextvars.bind_contextvars(trace_id=span.trace_id)


def _log_failure(scope: Scope, error: Exception) -> None:
    """Log an error that is none of our table."""
    if type(to_error(error)) is InternalError and not isinstance(error, InternalError):
        told = {"method": _method(scope), "endpoint": endpoint(scope)}
        log.error("request failed", exc_info=error, **told)


def _sender(context: RequestContext, send: Send) -> Send:
    """Return what sends a request's messages, with the headers that each response has."""

    def sender(message: Message) -> Awaitable[None]:
        kind = message["type"]
        if kind in _STARTS:
            _begin(message, context)
        elif kind == "websocket.accept":
            context.status = 101
            message["headers"] = [
                (b"x-request-id", context.request_id.encode()),
                *context.limit_headers,
                *context.notices,
                *context.cors,
            ]
        return send(message)  # awaited by the caller: no coroutine around it

    return sender


def _begin(message: Message, context: RequestContext) -> None:
    """Add to the head of a response what all of them have."""
    context.status = message["status"]
    own_seconds = time.perf_counter() - context.began - context.engine_seconds
    if own_seconds < 0.0:
        own_seconds = 0.0
    if context.services is not None:
        context.services.metrics.overhead(own_seconds)
    headers = [
        *message.get("headers", ()),
        (b"x-request-id", context.request_id.encode()),
        (b"x-bitinglip-overhead-ms", b"%.3f" % (own_seconds * 1000)),
        *context.limit_headers,
        *SECURITY_HEADERS,
        *context.notices,
        *context.cors,
    ]
    if b"cache-control" not in dict(headers):
        headers.append(_NO_STORE)
    if context.token_headers is not None:
        headers += context.token_headers()
    if context.span is not None:
        headers += context.span.headers
    message["headers"] = headers


def _request_id(fields: Fields) -> str:
    value = fields.get(b"x-request-id")
    if value is not None and _REQUEST_ID.fullmatch(value):
        return value.decode()
    return new_request_id()


def _method(scope: Scope) -> str:
    """Return the method; a WebSocket begins as a GET."""
    method: str = scope.get("method", "GET")
    return method


def endpoint(scope: Scope) -> str:
    """Return the route's template; ``_other`` for every path that matches no route."""
    return getattr(scope.get("route"), "path_format", "_other")


def _end(scope: Scope, method: str, context: RequestContext) -> None:
    """Give back what a request held, and count it."""
    if context.leave is not None:
        context.leave(refund=context.status >= 500 or context.spared)
    if context.release is not None:
        context.release()
    services = context.services
    if services is None:
        return
    route, status = endpoint(scope), context.status
    seconds = time.perf_counter() - context.began
    services.metrics.request_finished(method=method, endpoint=route, status=status, seconds=seconds)
    caller, (model, job_id) = scope.get("bitinglip.caller"), context.job or (None, None)
    ended, key, request_id = time.time(), caller and caller.key_id, context.request_id
    row = (ended, request_id, method, route, status, seconds, key, model, job_id)
    services.last_requests.add(route, row)
    write_line(route, row, None if context.span is None else context.span.trace_id)
    if context.span is not None:
        context.span.end(
            method=method,
            route=route,
            status=status,
            request_id=request_id,
            stranger=caller is None,
        )


class EdgeChecks:
    """Refuses malformed and foreign requests before any body is read."""

    def __init__(self, server: Server, security: Security) -> None:
        self._max_body = server.max_body_bytes
        self._max_upload = server.max_upload_bytes
        self._hosts = Hosts(server)
        #: Host headers that were accepted, each with the address that was called
        self._accepted: set[tuple[bytes | None, str | None]] = set()
        self._origins = Origins(server.cors_origins)
        self._allowed = tuple(security.ip_allow) or None
        self._denied = tuple(security.ip_deny)

    def check(self, scope: Scope, receive: Receive, context: RequestContext) -> Receive:
        """Return how to receive the body. Raises what is wrong with the request."""
        if context.services is None and route_path(scope) != "/livez":
            raise Unavailable("The server is starting.")
        headers: Headers = scope["headers"]
        fields = context.fields
        if len(fields) < len(headers):
            _check_single(headers)
        if self._allowed is not None or self._denied:
            self._check_address(scope)
        self._check_host(scope, fields)
        if b"origin" in fields or b"sec-fetch-site" in fields:
            self._check_origin(scope, fields)
        if scope["query_string"]:
            _check_query(scope["query_string"])
        limit = self._limit(fields)
        if _check_body(fields, limit) is None:
            return _counted(receive, limit)
        return receive

    def _check_address(self, scope: Scope) -> None:
        """Refuse addresses that the settings keep out; the Unix socket has none."""
        if is_local(scope):
            return
        address = scope["client"][0] if scope["client"] else ""
        if not address_allowed(self._allowed, address) or address_allowed(self._denied, address):
            error = IpNotAllowed(
                "The server may not be used from this address.", details={"address": address}
            )
            if context_of(scope).services is not None:
                refuse_login(HTTPConnection(scope), None, answer(error).code)
            raise error

    def _check_host(self, scope: Scope, fields: Fields) -> None:
        """Refuse names that are not ours, as a page under DNS rebinding would send.

        Clients of HTTP/1.0 need not send a name; health checks of proxies do not.
        """
        value = fields.get(b"host")
        if value is None and scope.get("http_version") == "1.0":
            return
        server = scope.get("server")
        told = value, server[0] if server else None
        if told in self._accepted:
            return
        name = None if value is None else parse_host(value.decode("latin-1"))
        if name is None or not self._hosts.accept(name, told[1]):
            raise foreign_host(name)
        if len(self._accepted) < _MOST_ACCEPTED:
            self._accepted.add(told)

    def _check_origin(self, scope: Scope, headers: Fields) -> None:
        """Refuse pages of other sites: WebSockets, and requests that change something.

        Browsers send these without asking first (CORS asks only about some requests, and never
        about WebSockets), and where keys are off nothing else tells a page from its user.
        """
        if scope["type"] == "http" and scope["method"] in _SAFE_METHODS:
            return
        origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
        host = headers.get(b"host", b"").decode("latin-1")
        text = None if origin is None else origin.decode("latin-1")
        if not self._origins.accept(text, host, other_site=site in _FOREIGN_SITES):
            raise foreign_page()

    def _limit(self, headers: Fields) -> int:
        """Return the bytes that the body may have; forms bring files."""
        kind = headers.get(b"content-type", _JSON)
        form = kind != _JSON and kind.lower().startswith(b"multipart/form-data")
        return self._max_upload if form else self._max_body


def _check_single(headers: Headers) -> None:
    """Refuse two hosts, and two types of one body: one would be checked, and the other used."""
    names = [name for name, _ in headers]
    if names.count(b"host") > 1:
        raise foreign_host(None)
    if names.count(b"content-type") > 1:
        raise InvalidRequest("The request has two Content-Type headers.", param="Content-Type")


def _check_body(headers: Fields, limit: int) -> int | None:
    """Check the declared length and return it; None if the body comes in chunks.

    Raises InvalidRequest, PayloadTooLarge or UnsupportedMediaType.
    """
    encoding = headers.get(b"content-encoding")
    if encoding is not None and encoding.lower() != b"identity":
        raise UnsupportedMediaType(
            "Send the body without a Content-Encoding.", details={"encodings": ["identity"]}
        )
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
