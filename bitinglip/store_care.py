"""Looks after the store while the server runs: what nothing needs, and the disk budget."""

from bitinglip.api.services import Services
from bitinglip.api.store_cleanup import clean_up

CLEAN_SECONDS = 3600.0  #: between two looks


async def run_store_care(services: Services) -> None:
    """Remove left-over files and, over ``store.max_bytes``, the least recently used models.

    Raises StoreUnavailable.
    """
    if services.operations.bootstrapped:  # the start cleans up, too, once the first models are made
        await clean_up(services, services.settings.store.max_bytes)
