"""Keeps this server among others that share its database.

It shows that it lives, finds out which others have ended, and reads what others have changed. All
of it goes through the database, by looks at short intervals; a broadcast only makes them earlier.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple

import structlog
from sqlmodel import col, delete, select, update

from bitinglip import __version__
from bitinglip.background import RECOVERABLE, reason
from bitinglip.db.database import Database
from bitinglip.db.dialects import insert
from bitinglip.db.tables import Gateway
from bitinglip.gateways.changes import counts
from bitinglip.gateways.observed import Life, Observed
from bitinglip.redis.broadcast import Broadcast
from bitinglip.redis.messages import RowsChanged
from bitinglip.settings.gateways import Gateways
from bitinglip.telemetry.health import Health

log = structlog.get_logger(__name__)

_CHECK = "database"  #: of /health, which shows what goes wrong here
Work = Callable[[], Awaitable[None]]


class GatewayView(NamedTuple):
    """Shows a server that shares the database, as of the last look."""

    id: str
    version: str
    started_at: datetime
    silence: float  #: seconds since a sign of life of it was seen that was new
    is_own: bool


class Sharing:
    """Is this server's place among others; one that has the database alone makes none."""

    def __init__(
        self,
        db: Database,
        own: str,
        settings: Gateways,
        health: Health,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``own``: the name of this server among the others."""
        self.own = own
        self._db = db
        self._health = health
        self._clock = clock
        self._interval = settings.heartbeat
        self._observed = Observed(settings.lease, longest_gap=settings.lease / 2)
        self._run = ""
        self._known: dict[str, int] = {}
        self._seen: dict[str, tuple[str, datetime]] = {}  #: all servers: version and start
        self._beaten = clock()
        self._on_change: dict[str, Work] = {}
        self._on_look: list[Work] = []
        self._on_rejoin: list[Work] = []
        self._wake = asyncio.Event()
        self._broadcast = Broadcast()

    def connect(self, broadcast: Broadcast) -> None:
        """Have servers tell each other of what they have written, so that they look at once."""

        async def look(_: RowsChanged | None = None) -> None:
            self.look_now()

        self._broadcast = broadcast
        broadcast.subscribe(RowsChanged, look, look)

    def tell(self) -> None:
        """Have the other servers look at what this one has written; without Redis they do soon."""
        self._broadcast.publish(RowsChanged())

    def on_change(self, what: str, read: Work) -> None:
        """Have something read again once another server may have changed it."""
        self._on_change[what] = read

    def on_look(self, work: Work) -> None:
        """Have work done at each look, such as taking up what belongs to nobody."""
        self._on_look.append(work)

    def on_rejoin(self, work: Work) -> None:
        """Have work done once this server was taken for dead, and others have its rows."""
        self._on_rejoin.append(work)

    async def join(self) -> None:
        """Enter this server. Raises DiskFull or DatabaseUnavailable."""
        self._run = secrets.token_hex(8)
        values = {
            "run": self._run,
            "beats": 0,
            "version": __version__,
            "started_at": datetime.now(UTC),
        }
        async with self._db.write() as session:
            added = insert(session, Gateway).values(id=self.own, **values)
            await session.execute(added.on_conflict_do_update(index_elements=["id"], set_=values))

    async def leave(self) -> None:
        """Take this server out: what it has not ended is anybody's from now on."""
        async with self._db.write() as session:
            mine = (col(Gateway.id) == self.own, col(Gateway.run) == self._run)
            await session.execute(delete(Gateway).where(*mine))

    def views(self) -> list[GatewayView]:
        """List the servers that share the database, this one first."""
        now = self._clock()
        own, others = now - self._beaten, self._observed
        views = [
            GatewayView(
                name,
                *told,
                own if name == self.own else others.silence(name, now),
                name == self.own,
            )
            for name, told in self._seen.items()
        ]
        return sorted(views, key=lambda each: (not each.is_own, each.id))

    def look_now(self) -> None:
        """Have the next look at once."""
        self._wake.set()

    async def watch(self) -> None:
        """Show that this server lives, and look at the others, again and again."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self._repeat(self._beat, asyncio.Event()), name="signs of life")
            both.create_task(self._repeat(self.look, self._wake), name="looks at other servers")

    async def _repeat(self, work: Work, wake: asyncio.Event) -> None:
        """Do work at each interval, and once something wakes it. A database that is away passes."""
        part = work.__name__.strip("_")
        while True:
            wake.clear()
            try:
                await work()
            except RECOVERABLE as error:
                self._health.degrade(_CHECK, f"other servers ({part})", reason(error))
            else:
                self._health.recover(_CHECK, f"other servers ({part})")
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await wake.wait()

    async def look(self) -> None:
        """See to what others have done, or left. Raises DiskFull or DatabaseUnavailable."""
        async with self._db.read() as session:
            rows = (await session.execute(select(Gateway))).scalars().all()
            changed = await counts(session)
        lives = {each.id: Life(each.run, each.beats) for each in rows}
        self._seen = {each.id: (each.version, each.started_at) for each in rows}
        own = lives.pop(self.own, None)
        if own is None or own.run != self._run:
            await self._rejoin()
        for name, life in self._observed.dead(lives, self._clock()).items():
            await self._remove(name, life)
        for what, read in self._on_change.items():
            count = changed.get(what, 0)
            if self._known.get(what) != count:
                await read()
                self._known[what] = count  # of before it was read: again is no harm
        for work in self._on_look:
            await work()

    async def _beat(self) -> None:
        mine = (col(Gateway.id) == self.own, col(Gateway.run) == self._run)
        async with self._db.write_beside() as session:
            beat = update(Gateway).where(*mine)
            await session.execute(beat.values(beats=col(Gateway.beats) + 1))
        self._beaten = self._clock()

    async def _rejoin(self) -> None:
        log.warning("other servers took this one for dead; it goes on with what is still its own")
        await self.join()
        for work in self._on_rejoin:
            await work()

    async def _remove(self, name: str, life: Life) -> None:
        """Take a dead server out; of several that want to, one does."""
        same = (col(Gateway.run) == life.run, col(Gateway.beats) == life.beats)
        async with self._db.write() as session:
            gone = delete(Gateway).where(col(Gateway.id) == name, *same)
            told = await session.execute(gone.returning(col(Gateway.id)))
            if told.first() is not None:
                log.warning("a server that shared the database is dead", gateway=name)
