"""Shares quotas between gateways: what all of a key's requests have used and reserved is in Redis.

The rows of usage in the database stay the truth. A charge is told to Redis before its row may be
written, so Redis never knows less than the database, unless it has lost something: then it is
raised to what the database says, and never beyond. Where Redis does not know a day or month yet,
the first request that draws on it tells it so.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from bitinglip.access.limits.token_rates import TakenTokens, TokenRates, refused_tokens
from bitinglip.access.shared.limits import (
    QuotaLimit,
    QuotaRequest,
    RateRequest,
    SharedLimits,
    TakeResult,
)
from bitinglip.access.usage.amounts import NAMES, TOKENS, Units
from bitinglip.access.usage.meter import CACHED, Held, Meter, Reservation
from bitinglip.access.usage.quotas import MONTHLY, Plan
from bitinglip.errors import DatabaseUnavailable, DiskFull, QuotaExceeded
from bitinglip.redis.errors import RedisAway
from bitinglip.redis.scripts import Script

RAISE_SECONDS = 2.0  #: between two comparisons of keys that were charged with the database
_SETTLE, _RAISE = (Script.beside(__file__, f"{name}.lua") for name in ("settle", "raise"))
_DAY, _MONTH = 3 * 86_400_000, 35 * 86_400_000  #: milliseconds that a count is kept

#: returns what a key has used by the database, in a day and in its month
Sums = Callable[[str, str], Awaitable[tuple[Units, Units]]]


class SharedQuotas:
    """Shares the meter's quotas with other gateways. ``flush`` writes the meter's counts."""

    def __init__(
        self,
        limits: SharedLimits,
        meter: Meter,
        rates: TokenRates,
        sums: Sums,
        flush: Callable[[], Awaitable[None]],
    ) -> None:
        self._limits = limits
        self._meter = meter
        self._rates = rates
        self._sums = sums
        self._flush = flush
        self._charged: set[str] = set()  #: keys whose rows Redis may not know
        self._telling: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._untold: set[asyncio.Future[Any]] = set()

    def asked(self, key_id: str, units: Iterable[int]) -> QuotaRequest | None:
        """Return the quotas that a request for these units draws on; None without any."""
        if not units or not (plan := self._meter.plan(key_id)):
            return None
        return self._drawn(plan, [int(unit in units) for unit in range(len(NAMES))])

    async def take(
        self, key_id: str, rates: Sequence[RateRequest], quotas: QuotaRequest | None, **asked: Any
    ) -> TakeResult:
        """Take as ``SharedLimits.take`` does, once Redis knows what was used. Raises RedisAway."""
        taken = await self._limits.take(key_id, rates, quotas=quotas, **asked)
        if quotas is None or not taken.unknown:
            return taken
        await self.tell(key_id, quotas.day)
        taken = await self._limits.take(key_id, rates, quotas=quotas, **asked)
        if taken.unknown:
            raise RedisAway("it forgets what it is told")
        return taken

    def refusal(
        self,
        key_id: str,
        quotas: QuotaRequest | None,
        taken: TakeResult,
        wanted: Sequence[int] = (),
    ) -> QuotaExceeded | None:
        """Return the error of a quota that refused, if one did; update the meter's counts."""
        if quotas is None:
            return None
        wanted = wanted or _wanted(quotas)
        return self._meter.counted(key_id, quotas.of, taken.used, wanted)

    async def reserve(self, key_id: str, estimate: Callable[[], Units]) -> Held | None:
        """Reserve what a request may use at most; None where the meter has to do it. Raises
        QuotaExceeded, RateLimitExceeded or LimitsUnavailable."""
        plan, limit = self._meter.plan(key_id), self._rates.limit(key_id)
        if (not plan and limit is None) or self._limits.away:
            return None
        wanted = estimate()
        tokens = self._rates.asked(key_id, wanted[TOKENS])
        rates = [] if tokens is None else [tokens]
        quotas = self._drawn(plan, wanted)._replace(reserve=wanted) if plan else None
        name = self._limits.name()
        try:
            taken = await self.take(key_id, rates, quotas, name=name)
        except RedisAway:
            self._limits.fall_back()
            return None
        if spent := self.refusal(key_id, quotas, taken, wanted):
            raise spent
        if taken.decision.wait and tokens is not None and limit is not None:
            raise refused_tokens(limit, tokens.cost, taken.decision.wait)
        if tokens is None:
            return Held(name, wanted, None)
        self._rates.mirror(tokens.cell, taken.states[0])
        return Held(name, wanted, TakenTokens(tokens.cell, tokens.cost, key_id))

    async def charge_cached(self, key_id: str, model: str) -> bool:
        """Charge a request that was answered from a cache; False where the meter has to do it.
        Raises QuotaExceeded or LimitsUnavailable."""
        held = await self.reserve(key_id, lambda: CACHED.units)
        if held is None:
            return False
        reservation = self._meter.reserve(key_id, model, lambda: CACHED.units, held=held)
        self._meter.settle(reservation, CACHED)
        return True

    async def refresh(self, key_id: str) -> None:
        """Update the meter and the rates with the shared counts of a key, if Redis answers."""
        plan, tokens = self._meter.plan(key_id), self._rates.asked(key_id, 1)
        rates = [] if tokens is None else [tokens._replace(cost=0)]
        if (not plan and not rates) or self._limits.link.away is not None:
            return
        quotas = self._drawn(plan, [0] * len(NAMES)) if plan else None
        with suppress(RedisAway):
            taken = await self.take(key_id, rates, quotas, reads=True)
            self.refusal(key_id, quotas, taken)
            if tokens is not None:
                self._rates.mirror(tokens.cell, taken.states[0])

    def drop(self, key_id: str, held: Held) -> None:
        """Give back what was reserved for a request that has not begun."""
        if held.taken is not None:
            self._rates.settle(held.taken, 0)
        self._limits.settled(key_id, held.name)
        if self._meter.plan(key_id):
            self._charge(key_id, held.name, (0,) * len(NAMES))

    # ---- what the meter calls ------------------------------------------------------------------

    def settle(self, reservation: Reservation, units: Units, told: Callable[[], None]) -> None:
        if not self._meter.plan(reservation.key_id):  # it has none any more
            self._limits.settled(reservation.key_id, reservation.name)
            told()
            return
        call = self._charge(reservation.key_id, reservation.name, units)
        self._untold.add(call)
        call.add_done_callback(partial(self._told, told))

    def charged(self, key_id: str) -> None:
        self._charged.add(key_id)

    # ---- beside requests -----------------------------------------------------------------------

    async def settled(self) -> None:
        """Wait until all charges are sent, or have failed."""
        if self._untold:
            await asyncio.wait(list(self._untold))

    async def raise_charged(self) -> None:
        """Raise the counts of keys that were charged here to what the database says.

        Raises DiskFull or DatabaseUnavailable; then they are raised later.
        """
        if not self._charged or self._limits.link.away is not None:
            return
        keys, day = list(self._charged), self._meter.today.name
        await self._flush()
        for key_id in keys:
            self._charged.discard(key_id)
            if not self._meter.plan(key_id):
                continue
            try:
                await self._raise(key_id, day)
            except RedisAway:
                self._charged.add(key_id)
                if self._limits.link.away is not None:
                    return
            except BaseException:
                self._charged.add(key_id)
                raise

    async def tell(self, key_id: str, day: str) -> None:
        """Write a key's use to Redis, after all counts of this gateway are in the database. Raises
        RedisAway, also where the database cannot be read."""
        known = (key_id, day)
        if (task := self._telling.get(known)) is None:
            task = self._telling[known] = asyncio.create_task(self._tell(*known))
            task.add_done_callback(lambda _: self._telling.pop(known, None))
        await asyncio.shield(task)

    # ---- inside --------------------------------------------------------------------------------

    async def _tell(self, key_id: str, day: str) -> None:
        try:
            await self._flush()
            await self._raise(key_id, day)
        except (DatabaseUnavailable, DiskFull):
            raise RedisAway("the database does not say what was used") from None

    async def _raise(self, key_id: str, day: str) -> None:
        daily, monthly = await self._sums(key_id, day)
        keys = self._limits.used_keys(key_id, day)
        await self._limits.link.call(_RAISE, keys, [_DAY, *daily, _MONTH, *monthly])

    def _charge(self, key_id: str, name: str, units: Sequence[int]) -> "asyncio.Future[Any]":
        self._limits.settled(key_id, name)
        keys = self._limits.used_keys(key_id, self._meter.today.name)
        keys.append(self._limits.reserved_key(key_id))
        return self._limits.link.tell(_SETTLE, keys, [name, *units])

    def _told(self, told: Callable[[], None], call: "asyncio.Future[Any]") -> None:
        self._untold.discard(call)
        told()

    def _drawn(self, plan: Plan, wanted: Sequence[int]) -> QuotaRequest:
        drawn = [
            QuotaLimit(quota.period == MONTHLY, quota.unit, quota.limit, bool(wanted[quota.unit]))
            for quota in plan
        ]
        return QuotaRequest(self._meter.today.name, tuple(drawn), plan)


def _wanted(quotas: QuotaRequest) -> list[int]:
    """Return one of each unit that a request draws on."""
    wanted = {each.unit for each in quotas.plan if each.wanted}
    return [int(unit in wanted) for unit in range(len(NAMES))]
