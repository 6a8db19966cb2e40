"""Cleans up the store beside a server that uses it: one way for operators and for the budget."""

import asyncio
from collections.abc import Callable
from functools import partial

import structlog

from bitinglip.api.services import Services
from model_store.cleanup import Removal, carry_out

log = structlog.get_logger(__name__)


def in_use(services: Services) -> set[str]:
    """Return the models that no clean-up removes: in use, or needed by the settings."""
    operations, settings = services.operations, services.settings
    wanted = {name for name, own in settings.models.items() if own.pin or own.preload}
    wanted |= {own.speech.vocoder for own in settings.models.values() if own.speech.vocoder}
    return {name for name in services.store.names() if name in wanted or operations.in_use(name)}


def _any(_name: str) -> bool:
    return True


async def plan_cleanup(
    services: Services, max_bytes: int | None, may_remove: Callable[[str], bool] = _any
) -> list[Removal]:
    """Say what ``clean_up`` would remove. Raises StoreUnavailable."""
    await services.operations.record_uses()
    used = in_use(services)

    def held(name: str) -> bool:
        return name in used or not may_remove(name)

    return await asyncio.to_thread(partial(services.store.gc, max_bytes=max_bytes, in_use=held))


async def clean_up(
    services: Services, max_bytes: int | None, may_remove: Callable[[str], bool] = _any
) -> list[Removal]:
    """Remove left-over files and, over ``max_bytes``, the least recently used models.

    ``may_remove`` tells of which models. Returns what went; a model that has come into use
    meanwhile stays. Raises StoreUnavailable.
    """
    found = await plan_cleanup(services, max_bytes, may_remove)
    files = [each for each in found if each.kind != "model"]
    gone = await asyncio.to_thread(carry_out, services.store, files)
    for each in found:
        if each.kind == "model" and await _remove(services, each):
            gone.append(each)
    return gone


async def _remove(services: Services, removal: Removal) -> bool:
    held = in_use(services).__contains__  # by now
    if not await asyncio.to_thread(carry_out, services.store, [removal], held):
        return False
    services.cache.clear(removal.name.__eq__)
    log.info("a model was removed", model=removal.name, bytes=removal.bytes, reason=removal.why)
    return True
