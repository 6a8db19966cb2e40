"""Looks after the store while the server runs: what nothing needs, and the disk budget."""

import asyncio
from functools import partial

import structlog

from bitinglip.api.admin.store_care import in_use
from bitinglip.api.services import Services
from model_store.cleanup import Removal, carry_out

CLEAN_SECONDS = 3600.0  #: between two looks

log = structlog.get_logger(__name__)


async def look_after_store(services: Services) -> None:
    """Remove left-over files and, under ``store.max_bytes``, the least recently used models.

    Raises StoreUnavailable.
    """
    if not services.operations.bootstrapped:
        return  # the start cleans up, too, once it has made the first models
    store, budget = services.store, services.settings.store.max_bytes
    await asyncio.to_thread(partial(store.gc, do=True))
    if budget is None:
        return
    look = partial(store.gc, max_bytes=budget, in_use=in_use(services).__contains__)
    for each in await asyncio.to_thread(look):
        if each.kind == "model":
            await _remove(services, each)


async def _remove(services: Services, removal: Removal) -> None:
    held = in_use(services).__contains__  # by now
    if await asyncio.to_thread(carry_out, services.store, [removal], held):
        services.cache.clear(removal.name.__eq__)
        log.info("a model was removed", model=removal.name, bytes=removal.bytes, reason=removal.why)
