"""Keeps this server among others that share its database.

It writes heartbeats, finds out which other servers have ended, and reads what they have changed.
All of it goes through the database, polled at short intervals; a broadcast makes a poll earlier.
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
from bitinglip.gateways.failure_detector import FailureDetector, Heartbeat
from bitinglip.redis.broadcast import Broadcast
from bitinglip.redis.messages import RowsChanged
from bitinglip.settings.gateways import Gateways
from bitinglip.telemetry.health import Health

log = structlog.get_logger(__name__)

_CHECK = "database"  #: of /health, which shows what goes wrong here
Work = Callable[[], Awaitable[None]]


class GatewayView(NamedTuple):
    """Shows a server that shares the database, as of the last poll."""

    id: str
    version: str
    started_at: datetime
    silence: float  #: seconds since its heartbeat was last seen to change
    is_own: bool


class Membership:
    """Manages this server's row among others. A server with a database of its own has none."""

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
        self._detector = FailureDetector(settings.lease, longest_gap=settings.lease / 2)
        self._run = ""
        self._known: dict[str, int] = {}
        self._seen: dict[str, tuple[str, datetime]] = {}  #: all servers: version and start
        self._beaten = clock()
        self._on_change: dict[str, Work] = {}
        self._on_poll: list[Work] = []
        self._on_rejoin: list[Work] = []
        self._wake = asyncio.Event()
        self._broadcast = Broadcast()

    def connect(self, broadcast: Broadcast) -> None:
        """Have servers tell each other of what they have written, so that they poll at once."""

        async def poll(_: RowsChanged | None = None) -> None:
            self.poll_now()

        self._broadcast = broadcast
        broadcast.subscribe(RowsChanged, poll, poll)

    def tell(self) -> None:
        """Have other servers poll at once; without Redis they do at their next interval."""
        self._broadcast.publish(RowsChanged())

    def on_change(self, what: str, read: Work) -> None:
        """Call ``read`` whenever another server may have changed ``what``."""
        self._on_change[what] = read

    def did(self, what: str, count: int) -> None:
        """Take a change that this server has counted itself, as this many, as known here."""
        if self._known.get(what) == count - 1:  # else another's is not known, or a poll saw it
            self._known[what] = count

    def on_poll(self, work: Work) -> None:
        """Call ``work`` at each poll: it may claim rows whose owner has ended."""
        self._on_poll.append(work)

    def on_rejoin(self, work: Work) -> None:
        """Call ``work`` after other servers took this one for dead and claimed its rows."""
        self._on_rejoin.append(work)

    async def join(self) -> None:
        """Insert this server's row. Raises DiskFull or DatabaseUnavailable."""
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
        """Delete this server's row: other servers may claim its open work from now on."""
        async with self._db.write() as session:
            mine = (col(Gateway.id) == self.own, col(Gateway.run) == self._run)
            await session.execute(delete(Gateway).where(*mine))

    def views(self) -> list[GatewayView]:
        """List the servers that share the database, this one first."""
        now = self._clock()
        own, others = now - self._beaten, self._detector
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

    def poll_now(self) -> None:
        """Poll at once, not at the next interval."""
        self._wake.set()

    async def watch(self) -> None:
        """Write heartbeats and poll, each at its interval, until cancelled."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self._repeat(self._beat, asyncio.Event()), name="heartbeats")
            both.create_task(self._repeat(self.poll, self._wake), name="polls of other servers")

    async def _repeat(self, work: Work, wake: asyncio.Event) -> None:
        """Run ``work`` at each interval and when woken. A database that is away is reported."""
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

    async def poll(self) -> None:
        """Handle what others have changed or left. Raises DiskFull or DatabaseUnavailable."""
        async with self._db.read() as session:
            rows = (await session.execute(select(Gateway))).scalars().all()
            changed = await counts(session)
        heartbeats = {each.id: Heartbeat(each.run, each.beats) for each in rows}
        self._seen = {each.id: (each.version, each.started_at) for each in rows}
        own = heartbeats.pop(self.own, None)
        if own is None or own.run != self._run:
            await self._rejoin()
        for name, heartbeat in self._detector.dead(heartbeats, self._clock()).items():
            await self._remove(name, heartbeat)
        for what, read in self._on_change.items():
            count = changed.get(what, 0)
            if self._known.get(what) != count:
                await read()
                self._known[what] = count  # of before it was read: again is no harm
        for work in self._on_poll:
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

    async def _remove(self, name: str, heartbeat: Heartbeat) -> None:
        """Delete a dead server's row; of several servers that try, one succeeds."""
        same = (col(Gateway.run) == heartbeat.run, col(Gateway.beats) == heartbeat.beats)
        async with self._db.write() as session:
            gone = delete(Gateway).where(col(Gateway.id) == name, *same)
            told = await session.execute(gone.returning(col(Gateway.id)))
            if told.first() is not None:
                log.warning("a server that shared the database is dead", gateway=name)
