"""Finish the start once the server answers: make the first models, then let work in.

It may take seconds, so no request waits for it but those for models.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog

from bitinglip.api.services import Services
from bitinglip.settings import Settings
from bitinglip.settings.models import UPSTREAM
from bitinglip.store_care import run_store_care
from model_store.rereading import reread, told_before
from model_store.rights import unreadable_models
from model_store.store import ModelStore

log = structlog.get_logger(__name__)

#: Called once the server can do all it is meant to: its services, and the admin key if it is new.
Opened = Callable[[Services, str | None], None]


async def bootstrap(services: Services, admin_key: str | None, on_open: Opened) -> None:
    """Make the models that the settings ask for, and let requests for models in.

    Raises OSError or NoSpace if a model could not be made: the server is open all the same, and a
    further call makes the rest.
    """
    try:
        await asyncio.to_thread(_make_models, services.settings, services.store)
    finally:
        if not services.operations.bootstrapped:
            on_open(services, admin_key)
            services.operations.open()
            services.tasks.resume()
            services.batches.resume()
            services.downloads.resume()
    await asyncio.to_thread(_warn_of_unreadable, services.home.models)
    await _look_again(services.store)
    await run_store_care(services)


async def _look_again(store: ModelStore) -> None:
    """Tell models' files again that an older version has told, one after another, off the loop."""
    for name in await asyncio.to_thread(told_before, store):
        if await asyncio.to_thread(reread, store, name):
            log.info("more is known of a model's files by this version", model=name)


def _warn_of_unreadable(models: Path) -> None:
    for name, why in unreadable_models(models):
        log.warning("a model cannot be read", model=name, reason=why.detail, advice=why.advice)


def _make_models(settings: Settings, store: ModelStore) -> None:
    from model_store.demo import (
        make_demo_models,
        make_fake_models,
        make_upstream_models,
        refresh_demo_models,
    )

    if settings.demo != "never":
        refresh_demo_models(store)
    if settings.demo == "always" or (settings.demo == "auto" and not store.names()):
        make_demo_models(store)
    # A model that the settings call fake needs no files: it only pretends.
    fakes = [name for name, own in settings.models.items() if own.engine == "fake"]
    make_fake_models(store, fakes)
    upstreams = {
        name: own.upstream.kind for name, own in settings.models.items() if own.engine == UPSTREAM
    }
    make_upstream_models(store, upstreams)
