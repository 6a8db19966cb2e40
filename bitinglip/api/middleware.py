"""Handles each request and WebSocket first, as pure ASGI.

It makes no task and no copy of the body. There is no stack of middleware behind it: one layer
costs as much as a check of a key, so what all requests need stands here, in order.
"""

import re
import time
from collections.abc import Awaitable
from contextvars import ContextVar
from http import HTTPStatus
from typing import TYPE_CHECKING

import structlog
from fastapi.routing import APIRoute
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bitinglip.api.cors import Cors
from bitinglip.api.direct_routes import direct_routes
from bitinglip.api.edge_checks import EdgeChecks, Fields
from bitinglip.api.errors import error_response, to_error
from bitinglip.api.proxies import Proxies
from bitinglip.api.request_context import (
    CLIENT_GONE,
    RequestContext,
    new_request_id,
    route_path,
)
from bitinglip.api.services import Services
from bitinglip.errors import (
    InternalError,
)
from bitinglip.settings import Settings
from bitinglip.telemetry.request_lines import write_line

if TYPE_CHECKING:
    from bitinglip.tracing.tracer import Tracer

log = structlog.get_logger(__name__)

#: what log lines take for the request's id; as bind_contextvars sets it, which takes its time
_logged_id: ContextVar[str] = ContextVar(f"{structlog.contextvars.STRUCTLOG_KEY_PREFIX}request_id")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}", re.ASCII)
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]
#: for each response that does not say otherwise: it may hold what only one caller may see
_NO_STORE = (b"cache-control", b"private, no-store")
_TYPES = ("http", "websocket")
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
        # A client may set the time itself, and was worked for until then.
        ours = context.status >= 500 and context.status != HTTPStatus.GATEWAY_TIMEOUT
        context.leave(refund=ours or context.spared)
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
