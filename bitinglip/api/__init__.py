"""The HTTP surface. ``mount`` is all that the composition root needs."""

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute
from starlette.types import Receive, Send
from starlette.types import Scope as HttpScope

from bitinglip.access.scopes import Scope
from bitinglip.api import documentation, errors, ops
from bitinglip.api.admin import keys, models, workers
from bitinglip.api.inference import image, speech, text, transcription
from bitinglip.api.middleware import EdgeChecks, RequestMiddleware
from bitinglip.api.openai import images as openai_images
from bitinglip.api.openai import models as openai_models
from bitinglip.api.openai import speech as openai_speech
from bitinglip.api.openai import text as openai_text
from bitinglip.api.openai import transcription as openai_transcription
from bitinglip.api.tasks import files, tasks, watch
from bitinglip.errors import NotFound
from bitinglip.settings import Settings

#: routes that anybody may ask; every other one declares a scope, or the server does not start
PUBLIC = frozenset({"/livez", "/readyz", "/health", "/docs", "/openapi.json"})
_ROUTERS = (
    text.router,
    image.router,
    speech.router,
    transcription.router,
    tasks.router,
    files.router,
    watch.router,
    openai_text.router,
    openai_images.router,
    openai_speech.router,
    openai_transcription.router,
    models.router,
    openai_models.router,
    workers.router,
    keys.router,
    ops.router,
)


def mount(app: FastAPI, settings: Settings) -> None:
    """Add routes, error answers and what every request passes, outermost last."""
    app.router.redirect_slashes = False
    for router in _ROUTERS:
        app.router.routes.extend(router.routes)
    app.router.default = _nothing_here
    check_declared(app.routes)
    documentation.install(app)
    errors.install(app)
    if settings.server.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.server.cors_origins,
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Prefer", "X-API-Key", "X-Request-ID"],
            expose_headers=[
                "Location",
                "X-Request-ID",
                "X-Queue-Position",
                "X-BitingLip-Overhead-Ms",
            ],
        )
    app.add_middleware(EdgeChecks, server=settings.server)
    app.add_middleware(RequestMiddleware)


async def _nothing_here(_scope: HttpScope, _receive: Receive, _send: Send) -> None:
    """No route matches: the same error for requests and WebSockets."""
    raise NotFound()


def declared_scope(route: BaseRoute) -> Scope | None:
    """The scope that a route declares, if it does."""
    return getattr(getattr(route, "endpoint", None), "needed_scope", None)


def check_declared(routes: list[BaseRoute]) -> None:
    """Deny by default: a route without a scope is public only if it is on the list."""
    for route in routes:
        path = getattr(route, "path", None)
        if declared_scope(route) is None and path not in PUBLIC:
            raise RuntimeError(f"{path} declares no scope and is not public")
