"""Puts the HTTP surface into an application."""

from collections.abc import Coroutine
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from bitinglip.api import docs_page, documentation, openai_lists, ops
from bitinglip.api.admin import (
    audit,
    cache,
    cluster,
    debug,
    downloads,
    keys,
    limits,
    models,
    store_care,
    tokens,
    usage,
    workers,
)
from bitinglip.api.auth import declared_limits, declared_scope
from bitinglip.api.batches import batches, client_files
from bitinglip.api.dashboard import dashboard
from bitinglip.api.inference import routers
from bitinglip.api.middleware import Door
from bitinglip.api.not_found import blurred, not_found
from bitinglip.api.request_context import route_path
from bitinglip.api.tasks import files, tasks, watch
from bitinglip.settings import Settings
from bitinglip.settings_loader import SettingsError

#: routes that need no key; every other one declares a scope, or the server does not start
PUBLIC = frozenset(
    {
        "/",
        "/dashboard/{files_digest}/{name:path}",
        "/livez",
        "/readyz",
        "/health",
        "/docs",
        "/docs/{name}",
        "/openapi.json",
    }
)
_ROUTERS = (
    *routers(),
    client_files.router,
    batches.router,
    tasks.router,
    files.router,
    watch.router,
    downloads.router,  # before models, whose ids may begin as its paths do
    store_care.router,
    models.native,
    openai_lists.router,
    workers.router,
    cluster.router,
    debug.router,
    keys.router,
    audit.router,
    limits.router,
    cache.router,
    usage.router,
    tokens.router,
    ops.router,
    docs_page.router,
)


class Application(FastAPI):
    """Runs FastAPI's application behind our checks of all requests."""

    door: Door

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        return self.door(scope, receive, send)


def mount(app: Application, settings: Settings) -> None:
    """Add routes, and the door in front of them."""
    app.router.redirect_slashes = False
    for router in _ROUTERS:
        app.router.routes.extend(router.routes)
    app.router.routes.extend(dashboard(settings).routes)
    app.router.default = _not_found(app.routes)
    check_declared(app.routes)
    check_endpoints(app.routes, settings)
    documentation.install(app)
    app.door = Door(app, settings, AsyncExitStackMiddleware(app.router))


def _not_found(routes: list[BaseRoute]) -> ASGIApp:
    """Return what raises NotFound where no route matches, for requests and WebSockets alike."""
    known = blurred(getattr(route, "path", "") for route in routes)

    async def raise_not_found(scope: Scope, _receive: Receive, _send: Send) -> None:
        raise not_found(route_path(scope), known)

    return raise_not_found


def check_declared(routes: list[BaseRoute]) -> None:
    """Raise RuntimeError for a route that declares no scope or limits and is not in PUBLIC."""
    for route in routes:
        path = getattr(route, "path", None)
        if path in PUBLIC:
            continue
        if declared_scope(route) is None:
            raise RuntimeError(f"{path} declares no scope and is not public")
        if declared_limits(route) is None:
            raise RuntimeError(f"{path} declares no class of limits and is not public")


def check_endpoints(routes: list[BaseRoute], settings: Settings) -> None:
    """Raise SettingsError where limits.endpoints names a path that no limited route has."""
    known = {getattr(route, "path_format", "") for route in routes if declared_limits(route)}
    wrong = [path for path in settings.limits.endpoints if path not in known]
    if wrong:
        raise SettingsError(
            [f'limits.endpoints."{path}": there is no such route' for path in wrong]
        )
