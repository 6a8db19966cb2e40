"""Admits requests under the limits of their keys: all limits are taken, or none.

First what is left of its quotas, then a place among the key's requests at once, then the rates; a
refusal of the rates gives the place back. What was admitted leaves once, whatever becomes of it,
and is refunded if it failed through no fault of its own.
"""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec

from bitinglip.access.keys import Caller
from bitinglip.access.limits.gcra import FULL, Reading
from bitinglip.access.limits.headers import Headers, full_headers, limit_headers
from bitinglip.access.limits.places import Places
from bitinglip.access.limits.policy import (
    CONCURRENT,
    LimitClass,
    Policies,
    Policy,
    rate_exceeded,
)
from bitinglip.access.limits.store import Cell, Decision, MemoryStore, Store
from bitinglip.access.shared.limits import RateRequest, TakeResult
from bitinglip.access.usage.meter import Meter
from bitinglip.errors import BitingLipError, ConcurrencyLimitExceeded, RateLimitExceeded
from bitinglip.redis.errors import RedisAway
from bitinglip.settings.limits import Limits

if TYPE_CHECKING:
    from bitinglip.access.shared.counts import SharedCounts


def now() -> int:
    """Return the clock of all limits, in microseconds."""
    return time.monotonic_ns() // 1000


class Admitted(msgspec.Struct):
    """Describes a request that was let in, or is to be refused with ``refusal``."""

    key_id: str
    policy: Policy
    cells: tuple[Cell, ...] = ()
    share: int = FULL
    headers: Headers = ()
    refusal: BitingLipError | None = None
    place: str = ""  #: its name among those of all gateways that share limits
    shared: bool = False  #: whether its rates are those of all of them


class Admission:
    """Owns what each key has taken of its limits.

    ``per_key`` is the server's own cap of requests of a key at once, and ``share`` returns the
    part of its rates that a tier of this priority keeps under the present load.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        per_key: float = math.inf,
        share: Callable[[int], float] = lambda _rank: 1.0,
        store: Store | None = None,
        meter: Meter | None = None,
        clock: Callable[[], int] = now,
        shared: "SharedCounts | None" = None,
    ) -> None:
        self._policies = Policies(limits)
        self._meter = Meter() if meter is None else meter
        self._per_key = per_key
        self._share = share
        self._store = MemoryStore() if store is None else store
        self._clock = clock
        self._all = Places()  #: requests of every class
        self._places = Places()  #: those that a tier bounds
        self._shared = shared

    @property
    def in_flight(self) -> int:
        """Count the requests of limited keys at once."""
        return self._all.total

    async def enter(
        self, caller: Caller, kind: LimitClass, route: str, units: Iterable[int] = ()
    ) -> Admitted:
        """Take a place and the rates of a request, or refuse it; it has left by then.

        One that would use ``units`` is refused where a quota of them has nothing left. How much it
        may use is known once its body is, and reserved then; see ``access.usage.meter``.
        """
        policy, key_id = self._policies.of(caller.tier, kind, route), caller.key_id
        if self._shared is not None:
            admitted = await self._enter_shared(self._shared, key_id, policy, units)
            if admitted is not None:
                return admitted
        if units and (spent := self._meter.exhausted(key_id, units)):
            return Admitted(key_id, policy, refusal=spent)
        if not policy.limited:
            return Admitted(key_id, policy)
        cells = _cells(key_id, policy)
        share = self._share_of(policy)
        full = self._take_place(key_id, policy)
        if full is not None:
            decision = await self._store.take(cells, self._clock(), cost=0, share=share)
            headers = full_headers(policy, decision.readings)
            return Admitted(key_id, policy, headers=headers, refusal=full)
        try:
            if isinstance(self._store, MemoryStore):  # which needs no coroutine
                decision = self._store.take_now(cells, self._clock(), share=share)
            else:
                decision = await self._store.take(cells, self._clock(), share=share)
        except BaseException:
            self._leave_place(key_id, policy)
            raise
        headers = limit_headers(policy, decision.readings, decision.refusing)
        if decision.wait:
            self._leave_place(key_id, policy)
            return Admitted(key_id, policy, headers=headers, refusal=_refusal(policy, decision))
        admitted = Admitted(key_id, policy, cells, share, headers)
        if self._shared is not None and policy.places is not None:
            admitted.place = self._shared.limits.hold_place(key_id)
        return admitted

    async def _enter_shared(
        self, shared: "SharedCounts", key_id: str, policy: Policy, units: Iterable[int]
    ) -> Admitted | None:
        """Do as ``enter`` for limits of all gateways; None where this one's own limits hold.

        Raises LimitsUnavailable.
        """
        quotas = shared.quotas.asked(key_id, units)
        rates = self._asked(key_id, policy)
        if (not rates and policy.places is None and quotas is None) or shared.limits.away:
            return None
        cap = self._per_key if policy.capped else math.inf
        if policy.limited and not self._all.enter(key_id, cap):
            return Admitted(
                key_id, policy, headers=full_headers(policy, ()), refusal=_no_place(cap)
            )
        name = shared.limits.name() if policy.places is not None else ""
        passes = False
        try:
            taken = await shared.quotas.take(key_id, rates, quotas, name=name, places=policy.places)
            passes = taken.passes
        except RedisAway:
            shared.limits.fall_back()
            return None
        finally:
            if policy.limited and not passes:
                self._all.leave(key_id)
        self._mirror(rates, taken)
        admitted = self._judged(key_id, policy, taken, shared.quotas.refusal(key_id, quotas, taken))
        if passes:
            if name:
                self._places.enter(key_id)
            admitted.place, admitted.shared = name, True
        return admitted

    def _judged(
        self, key_id: str, policy: Policy, taken: TakeResult, spent: BitingLipError | None
    ) -> Admitted:
        """Say what becomes of a request: a quota refuses first, then places, then rates."""
        decision, share = taken.decision, self._share_of(policy)
        if spent is not None:
            return Admitted(key_id, policy, refusal=spent)
        if not taken.room:
            full = _no_place(policy.places or 0)
            headers = full_headers(policy, decision.readings)
            return Admitted(key_id, policy, headers=headers, refusal=full)
        headers = limit_headers(policy, decision.readings, decision.refusing)
        if decision.wait:
            return Admitted(key_id, policy, headers=headers, refusal=_refusal(policy, decision))
        return Admitted(key_id, policy, _cells(key_id, policy), share, headers)

    def _asked(self, key_id: str, policy: Policy, *, cost: int = 1) -> list[RateRequest]:
        share = self._share_of(policy)
        return [RateRequest(cell, cost, share) for cell in _cells(key_id, policy)]

    def _mirror(self, rates: Iterable[RateRequest], taken: TakeResult) -> None:
        """Note what is left, for when this gateway's own limits hold."""
        if isinstance(self._store, MemoryStore):
            here = self._clock()
            waits = zip(rates, taken.states, strict=True)
            self._store.restore({each.cell.id: here + wait for each, wait in waits})

    async def charge(
        self, caller: Caller, kind: LimitClass, route: str, units: Iterable[int] = ()
    ) -> BitingLipError | None:
        """Take the rates of work that goes on beside requests and has no place among them.

        Returns the refusal of a quota or rate, if there is one.
        """
        policy, key_id = self._policies.of(caller.tier, kind, route), caller.key_id
        if self._shared is not None and not self._shared.limits.away:
            quotas = self._shared.quotas.asked(key_id, units)
            rates = self._asked(key_id, policy)
            if not rates and quotas is None:
                return None
            try:
                taken = await self._shared.quotas.take(key_id, rates, quotas)
            except RedisAway:
                self._shared.limits.fall_back()
            else:
                self._mirror(rates, taken)
                spent = self._shared.quotas.refusal(key_id, quotas, taken)
                return spent or (_refusal(policy, taken.decision) if taken.decision.wait else None)
        if units and (spent := self._meter.exhausted(key_id, units)):
            return spent
        if not policy.limited:
            return None
        share = self._share_of(policy)
        decision = await self._store.take(_cells(key_id, policy), self._clock(), share=share)
        return _refusal(policy, decision) if decision.wait else None

    def leave(self, admitted: Admitted, *, refund: bool) -> None:
        """Give the place back; with ``refund`` the rates, too."""
        if not admitted.policy.limited:
            return
        self._leave_place(admitted.key_id, admitted.policy)
        if self._shared is not None:
            back = admitted.cells if refund and admitted.shared else ()
            rates = [RateRequest(cell, 1, admitted.share) for cell in back]
            self._shared.limits.give(admitted.key_id, rates, place=admitted.place)
        if refund:
            self._store.refund(admitted.cells, share=admitted.share)

    async def read(
        self, key_id: str, tier: str, kind: LimitClass, route: str = ""
    ) -> tuple[Policy, tuple[Reading, ...], int]:
        """Return a key's policy for a class of routes, what is left of it, and the places taken."""
        policy = self._policies.of(tier, kind, route)
        share = self._share_of(policy)
        if self._shared is not None and self._shared.limits.link.away is None:
            with suppress(RedisAway):
                rates = self._asked(key_id, policy, cost=0)
                taken = await self._shared.limits.take(key_id, rates, reads=True, places=0)
                return policy, taken.decision.readings, taken.places
        cells = _cells(key_id, policy)
        decision = await self._store.take(cells, self._clock(), cost=0, share=share)
        return policy, decision.readings, self._places.count(key_id)

    def _share_of(self, policy: Policy) -> int:
        return max(1, int(self._share(policy.rank) * FULL)) if policy.adaptive else FULL

    def _take_place(self, key_id: str, policy: Policy) -> ConcurrencyLimitExceeded | None:
        """Take the places of a request, or return why there is none."""
        cap = self._per_key if policy.capped else math.inf
        if not self._all.enter(key_id, cap):
            return _no_place(cap)
        if policy.places is not None and not self._places.enter(key_id, policy.places):
            self._all.leave(key_id)
            return _no_place(policy.places)
        return None

    def _leave_place(self, key_id: str, policy: Policy) -> None:
        self._all.leave(key_id)
        if policy.places is not None:
            self._places.leave(key_id)


@lru_cache(maxsize=1024)
def _cells(key_id: str, policy: Policy) -> tuple[Cell, ...]:
    return tuple([Cell(f"{key_id}:{limit.cell}", limit.rate) for limit in policy.rates])


def _no_place(limit: float) -> ConcurrencyLimitExceeded:
    return ConcurrencyLimitExceeded(
        f"This API key may have {limit:.0f} requests at once.",
        details={"limit": limit, "violated_policies": [CONCURRENT]},
    )


def _refusal(policy: Policy, decision: Decision) -> RateLimitExceeded:
    limits = [policy.rates[index] for index in decision.refusing]
    longest = max(limits, key=lambda limit: limit.rate.window)
    window = longest.rate.window // 1_000_000
    text = f"This API key may send {longest.rate.quota} such requests in {window} seconds"
    return rate_exceeded(text, [limit.name for limit in limits], decision.wait)
