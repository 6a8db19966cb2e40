"""Ends what runs for a key or a secret that has ended: jobs, tasks and open connections.

One check at short intervals covers revocation, expiry and tasks of the server's last run alike.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from bitinglip.access.credentials import Credential
from bitinglip.scheduling.dispatch.dispatcher import Dispatcher
from bitinglip.tasks.tasks import Tasks

log = structlog.get_logger(__name__)

CHECK_SECONDS = 0.25  #: between two checks


class Revocation:
    """Compares the credentials of all open work with the key ring."""

    def __init__(
        self, is_valid: Callable[[Credential], bool], dispatcher: Dispatcher, tasks: Tasks
    ) -> None:
        self._is_valid = is_valid
        self._dispatcher = dispatcher
        self._tasks = tasks
        self._connections: dict[asyncio.Event, Credential] = {}

    @contextmanager
    def connection(self, credential: Credential) -> Iterator[asyncio.Event]:
        """Yield an event that is set once the credential of an open connection has ended."""
        ended = asyncio.Event()
        self._connections[ended] = credential
        try:
            yield ended
        finally:
            del self._connections[ended]

    async def check(self) -> None:
        """Cancel the jobs and tasks of credentials that have ended, and close their connections."""
        in_use = self._dispatcher.credentials() | self._tasks.credentials()
        in_use.update(self._connections.values())
        for credential in in_use:
            if not self._is_valid(credential):
                self._end(credential)

    def _end(self, credential: Credential) -> None:
        cancelled = self._dispatcher.cancel_of(credential) + self._tasks.cancel_of(credential)
        closed = 0
        for ended, owner in self._connections.items():
            if owner == credential and not ended.is_set():
                ended.set()
                closed += 1
        if cancelled or closed:
            log.info(
                "the work of an ended key was cancelled", key=credential.key_id, jobs=cancelled
            )
