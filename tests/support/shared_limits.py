"""Builds what checks the limits of requests in a gateway, alone or with others over one Redis."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitinglip.access.keys import Caller
from bitinglip.access.limits.admission import Admission, Admitted, now
from bitinglip.access.limits.policy import LimitClass
from bitinglip.access.limits.store import MemoryStore
from bitinglip.access.limits.token_rates import TokenRates
from bitinglip.access.scopes import Scope
from bitinglip.access.shared.counts import SharedCounts
from bitinglip.access.usage.amounts import Amounts, Units
from bitinglip.access.usage.meter import Meter, Reservation
from bitinglip.access.usage.quotas import Plans
from bitinglip.access.usage.rows import UsageRows
from bitinglip.db.database import Database
from bitinglip.db.write_behind import WriteBehind
from bitinglip.errors import QuotaExceeded, RateLimitExceeded
from bitinglip.redis.errors import RedisAway
from bitinglip.redis.link import RedisLink
from bitinglip.settings.limits import Limits
from bitinglip.settings.redis import Redis as RedisSettings
from bitinglip.telemetry.health import Health

PATH = "/v1/completions"
_migrated: list[bytes] = []  #: the file of an empty database


@dataclass
class Gateway:
    """Builds the parts of a gateway that check limits; its keys are all of tier free."""

    admission: Admission
    meter: Meter
    rates: TokenRates
    write_behind: WriteBehind
    shared_counts: SharedCounts | None
    link: RedisLink | None

    async def enter(self, key: str = "k", *units: int) -> Admitted:
        caller = Caller(key, key, "free", frozenset({Scope.TEXT}))
        return await self.admission.enter(caller, LimitClass.INFERENCE, PATH, units)

    async def passes(self, key: str = "k", *units: int) -> bool:
        """Return whether a request is admitted; its place stays taken."""
        return (await self.enter(key, *units)).refusal is None

    async def reserve(self, tokens: int = 1, key: str = "k") -> Reservation | None:
        """Reserve as a job does; None where it is refused."""
        wanted: Units = (1, tokens, 0, 0, 0)
        held = None
        try:
            if self.shared_counts is not None:
                held = await self.shared_counts.quotas.reserve(key, lambda: wanted)
            return self.meter.reserve(key, "m", lambda: wanted, held=held)
        except (QuotaExceeded, RateLimitExceeded):
            return None

    async def use(self, tokens: int = 1, key: str = "k") -> bool:
        """Reserve and settle a request of so many tokens; return whether it passed."""
        reservation = await self.reserve(tokens, key)
        if reservation is not None:
            await self.settle(reservation, tokens)
        return reservation is not None

    async def settle(self, reservation: Reservation, tokens: int) -> None:
        """Settle a request, and wait until the other gateways know."""
        self.meter.settle(reservation, Amounts(requests=1, completion_tokens=tokens))
        await self.told()

    async def told(self) -> None:
        """Wait until what this gateway has told Redis is there."""
        if self.link is not None:
            with suppress(RedisAway):
                await self.link.command("PING")


@asynccontextmanager
async def gateways(
    folder: Path,
    count: int,
    url: str | None,
    free: Mapping[str, Any] | None = None,
    *,
    redis: Mapping[str, Any] | None = None,
) -> AsyncIterator[list[Gateway]]:
    """Open gateways over one database; ``free`` are the limits of the tier, ``redis`` settings."""
    async with AsyncExitStack() as stack:
        db = await _database(folder / "db")
        stack.push_async_callback(db.close)
        settings = RedisSettings(url=url, **{"timeout_ms": 5000, **(redis or {})})
        yield [await _gateway(db, settings, free or {}, stack) for _ in range(count)]


async def _database(path: Path) -> Database:
    """Open an empty database; only the first of a process is migrated."""
    if _migrated:
        path.write_bytes(_migrated[0])  # noqa: ASYNC240  nothing else runs
        return await Database.open(path)
    await (await Database.open(path)).close()
    if path.exists():  # noqa: ASYNC240  it is no database of PostgreSQL
        _migrated.append(path.read_bytes())  # noqa: ASYNC240  as above
    return await Database.open(path)


async def _gateway(
    db: Database, settings: RedisSettings, free: Mapping[str, Any], stack: AsyncExitStack
) -> Gateway:
    limits = Limits.model_validate({"tiers": {"free": free}})
    plans, cells = Plans(limits), MemoryStore()
    rates = TokenRates(limits, lambda _key: "free", cells, clock=now)
    meter = Meter(lambda _key: plans.of("free", None), rates=rates)
    usage = UsageRows(db, meter)
    await usage.load()
    write_behind = WriteBehind(db, usage)
    link = shared_counts = None
    if settings.url is not None:
        link = await RedisLink.opened(settings, Health())
        stack.push_async_callback(link.close)
        shared_counts = SharedCounts.over(link, meter, rates, usage, write_behind)
    admission = Admission(limits, store=cells, meter=meter, shared=shared_counts)
    return Gateway(admission, meter, rates, write_behind, shared_counts, link)


async def count_passing(gateways: list[Gateway], requests: int, *units: int) -> int:
    """Send requests at once, in turn to each gateway; return how many were admitted."""
    asked = [gateways[n % len(gateways)].passes("k", *units) for n in range(requests)]
    return sum(await asyncio.gather(*asked))


async def passes(ask: Callable[[], Awaitable[bool]]) -> None:
    """Ask until the answer is yes. Raises TimeoutError if it does not become so."""
    async with asyncio.timeout(60):
        while not await ask():  # noqa: ASYNC110  a lease ends by itself
            await asyncio.sleep(0.05)
