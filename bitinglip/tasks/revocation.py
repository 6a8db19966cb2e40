"""Ends what runs for a key that has ended, or that may no longer do it: jobs, tasks, connections.

One check at short intervals covers revocation, expiry, narrowing and tasks of the server's last run
alike.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from bitinglip.scheduling.dispatch.dispatcher import Dispatcher
from bitinglip.scheduling.job import Claim
from bitinglip.tasks.tasks import Tasks

log = structlog.get_logger(__name__)

CHECK_SECONDS = 0.25  #: between two checks


class Revocation:
    """Compares the claims of all open work with what the key ring grants."""

    def __init__(
        self, is_granted: Callable[[Claim], bool], dispatcher: Dispatcher, tasks: Tasks
    ) -> None:
        self._is_granted = is_granted
        self._dispatcher = dispatcher
        self._tasks = tasks
        self._connections: dict[asyncio.Event, Claim] = {}

    @contextmanager
    def connection(self, claim: Claim) -> Iterator[asyncio.Event]:
        """Yield an event that is set once an open connection is no longer granted."""
        ended = asyncio.Event()
        self._connections[ended] = claim
        try:
            yield ended
        finally:
            del self._connections[ended]

    async def check(self) -> None:
        """Cancel the jobs and tasks that are no longer granted, and close such connections."""
        in_use = self._dispatcher.claims() | self._tasks.claims()
        in_use.update(self._connections.values())
        for claim in in_use:
            if not self._is_granted(claim):
                self._end(claim)

    def _end(self, claim: Claim) -> None:
        cancelled = self._dispatcher.cancel_of(claim) + self._tasks.cancel_of(claim)
        closed = 0
        for ended, owner in self._connections.items():
            if owner == claim and not ended.is_set():
                ended.set()
                closed += 1
        if cancelled or closed:
            log.info(
                "work was cancelled that its key may not do any more",
                key=claim.credential.key_id,
                model=claim.model,
                jobs=cancelled,
            )
