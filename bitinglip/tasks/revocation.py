"""Ends what runs for a key that is revoked or has expired: jobs, tasks and open connections.

One check at short intervals covers revocation, expiry and tasks of the server's last run alike.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from bitinglip.access.keys import KeyRing
from bitinglip.scheduling.dispatch.dispatcher import Dispatcher
from bitinglip.tasks.tasks import Tasks

log = structlog.get_logger(__name__)

CHECK_SECONDS = 0.25  #: between two checks


class Revocation:
    """Compares the keys of all open work with the key ring."""

    def __init__(self, keys: KeyRing, dispatcher: Dispatcher, tasks: Tasks) -> None:
        self._keys = keys
        self._dispatcher = dispatcher
        self._tasks = tasks
        self._connections: dict[asyncio.Event, str] = {}

    @contextmanager
    def connection(self, key_id: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set once the key of an open connection has ended."""
        ended = asyncio.Event()
        self._connections[ended] = key_id
        try:
            yield ended
        finally:
            del self._connections[ended]

    async def check(self) -> None:
        """Cancel the jobs and tasks of keys that have ended, and close their connections."""
        in_use = self._dispatcher.key_ids() | self._tasks.key_ids()
        in_use.update(self._connections.values())
        for key_id in in_use:
            if not self._keys.is_valid(key_id):
                self._end(key_id)

    def _end(self, key_id: str) -> None:
        cancelled = self._dispatcher.cancel_key(key_id) + self._tasks.cancel_key(key_id)
        closed = 0
        for ended, owner in self._connections.items():
            if owner == key_id and not ended.is_set():
                ended.set()
                closed += 1
        if cancelled or closed:
            log.info("the work of an ended key was cancelled", key=key_id, jobs=cancelled)
