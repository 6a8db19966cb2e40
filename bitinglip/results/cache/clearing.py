"""Has all gateways forget cached answers when one of them is told to.

Gateways that share a database count it there, and look at once where a broadcast reaches them, else
at their next heartbeat. Those that share a Redis alone are told by it.
"""

from collections.abc import Callable

from bitinglip.db.database import Database
from bitinglip.gateways.changes import CACHE, count_change
from bitinglip.gateways.membership import Membership
from bitinglip.redis.broadcast import Broadcast
from bitinglip.redis.messages import CacheCleared


class Clearing:
    """Tells other gateways to forget their answers, those of all models, and hears it of them."""

    def __init__(self, db: Database, membership: Membership | None, broadcast: Broadcast) -> None:
        self._db = db
        self._membership = membership
        self._broadcast = broadcast

    def hear(self, clear: Callable[[], None]) -> None:
        """Have ``clear`` called whenever another gateway has told it, or may have."""

        async def heard(_: CacheCleared | None = None) -> None:
            clear()

        if self._membership is not None:
            self._membership.on_change(CACHE, heard)
        else:
            self._broadcast.subscribe(CacheCleared, heard, heard)

    async def tell(self) -> None:
        """Tell all others. Raises DiskFull or DatabaseUnavailable; then they may not know."""
        if self._membership is None:
            self._broadcast.publish(CacheCleared())
            return
        async with self._db.write() as session:
            count = await count_change(session, CACHE)
        self._membership.did(CACHE, count)
        self._membership.tell()
