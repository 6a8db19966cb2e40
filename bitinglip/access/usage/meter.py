"""The meter counts what each key uses, in memory: nothing on the way of a request touches a disk.

A request passes while each quota that it would draw on has something left that is neither used nor
reserved by requests that still run. It reserves what it may use at most; at its end that is
settled: what it used is charged, the rest comes back. So a key uses at most one request's worth
more than a quota, that of the request which took the last of it, however many come at once. Seconds
of sound and of devices are not known beforehand: there what is expected is reserved, and
requests at once may exceed a quota by what each of them takes longer.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from operator import add, sub
from typing import NamedTuple, Protocol

from bitinglip.access.limits.token_rates import TakenTokens, TokenRates
from bitinglip.access.usage.amounts import (
    MILLION,
    NAMES,
    NO_UNITS,
    NOTHING,
    TOKENS,
    Amounts,
    Units,
    shown_unit,
)
from bitinglip.access.usage.periods import Day, day_of
from bitinglip.access.usage.quotas import DAILY, Plan, Quota
from bitinglip.errors import QuotaExceeded

_UNKNOWN_GPU = MILLION  #: microseconds expected of a model that has not run yet

#: what a request uses that is answered from a cache
CACHED = Amounts(requests=1)

#: a key, a model and a day
RowId = tuple[str, str, str]


class _Account:
    """Holds what a key has used in the present day and month, and what running requests reserve."""

    __slots__ = ("daily", "elsewhere", "monthly", "reserved")

    def __init__(self) -> None:
        self.daily = [0] * len(NAMES)
        self.monthly = [0] * len(NAMES)
        self.reserved = [0] * len(NAMES)
        self.elsewhere = [0] * len(NAMES)  #: reserved by other gateways, when last looked

    def used(self, quota: Quota) -> int:
        return (self.daily if quota.period == DAILY else self.monthly)[quota.unit]


class Reservation:
    """Holds what one request may use, from its admission until it is settled."""

    __slots__ = (
        "account", "estimate", "key_id", "model", "name", "recorded", "settled", "taken", "told",
        "used",
    )  # fmt: skip

    def __init__(
        self,
        key_id: str,
        model: str,
        account: _Account,
        estimate: Units,
        recorded: bool,
        taken: TakenTokens | None = None,
    ) -> None:
        self.key_id = key_id
        self.model = model
        self.account = account
        self.estimate = estimate
        self.recorded = recorded  #: whether what is settled may be written at once
        self.taken = taken  #: of the key's rate in tokens
        self.settled = False
        self.used = NOTHING  #: settled and not recorded yet
        self.name = ""  #: that gateways share it by, where they do
        self.told = True  #: whether they know what was used, or cannot be told


class Held(NamedTuple):
    """Holds what a request has reserved of quotas and rates that gateways share."""

    name: str
    wanted: Units
    taken: TakenTokens | None  #: of the key's rate in tokens


class SharedMeter(Protocol):
    """Tells other gateways what a key of this one has used."""

    def settle(self, reservation: Reservation, units: Units, told: Callable[[], None]) -> None:
        """Charge it for all gateways; calls ``told`` once they know, or cannot be told."""

    def charged(self, key_id: str) -> None:
        """Have the database's count of a key told to the others: it was charged here alone."""


class QuotaState(NamedTuple):
    """Tells what a quota has left; amounts as in ``Quota.limit``, times in Unix seconds."""

    quota: Quota
    used: int
    reserved: int
    ends: float


class Meter:
    """Owns what keys have used; ``plan_of`` returns the quotas of a key by its id.

    ``rates`` bound their tokens by the minute, which are reserved and settled together with the
    quotas.
    """

    def __init__(
        self,
        plan_of: Callable[[str], Plan] = lambda _key_id: (),
        *,
        rates: TokenRates | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._plan_of = plan_of
        self._rates = rates
        self._clock = clock
        self._day = day_of(clock())
        self._accounts: dict[str, _Account] = {}
        self._rows: dict[RowId, list[int]] = {}  #: settled, and not taken to be written yet
        self._gpu: dict[str, int] = {}  #: by model: what a request took, smoothed
        self.stale = False  #: the clock went back: the counts of this day are in the database
        self.shared: SharedMeter | None = None  #: set where gateways share the quotas

    # ---- one request ---------------------------------------------------------------------------

    def exhausted(self, key_id: str, units: Iterable[int]) -> QuotaExceeded | None:
        """Return the refusal of a request that would use some of these units."""
        if not (plan := self._plan_of(key_id)):
            return None
        return self._refusal(plan, self._account(key_id), _one_of_each(tuple(units)))

    def check(self, key_id: str, estimate: Callable[[], Units]) -> None:
        """Raise QuotaExceeded if ``reserve`` would, without reserving anything."""
        if (plan := self._plan_of(key_id)) and (
            error := self._refusal(plan, self._account(key_id), estimate())
        ):
            raise error

    def reserve(
        self,
        key_id: str,
        model: str,
        estimate: Callable[[], Units],
        *,
        admitted: bool = False,
        recorded: bool = True,
        held: Held | None = None,
    ) -> Reservation:
        """Reserve what a request may use of each quota and of its key's rate in tokens.

        Raises QuotaExceeded or RateLimitExceeded; then nothing is taken. One that was ``admitted``
        by an earlier run of the server is not refused any more. What is not ``recorded`` is written
        once ``record`` is called. What gateways share is ``held`` already.
        """
        plan, account = self._plan_of(key_id), self._account(key_id)
        rates = self._rates
        limited = rates is not None and rates.limit(key_id) is not None
        if held is not None:  # whatever limits the key has by now: it is to be given back
            _add(account.reserved, held.wanted)
            shared = Reservation(key_id, model, account, held.wanted, recorded, held.taken)
            shared.name = held.name
            return shared
        if not plan and not limited:
            return Reservation(key_id, model, account, NO_UNITS, recorded)
        wanted, taken = estimate(), None
        if not admitted:
            if error := self._refusal(plan, account, wanted):
                raise error
            taken = rates.take(key_id, wanted[TOKENS]) if rates is not None and limited else None
        _add(account.reserved, wanted)
        return Reservation(key_id, model, account, wanted, recorded, taken)

    def settle(self, reservation: Reservation, used: Amounts) -> None:
        """Charge what a request has used, and free the rest of what it reserved; once only."""
        if reservation.settled:
            return
        reservation.settled = True
        account = reservation.account
        if reservation.estimate is not NO_UNITS:
            account.reserved[:] = map(sub, account.reserved, reservation.estimate)
        units = used.units
        if reservation.taken is not None and self._rates is not None:
            self._rates.settle(reservation.taken, units[TOKENS])
        if used == NOTHING and not reservation.name:
            return
        self._present()
        _add(account.daily, units)
        _add(account.monthly, units)
        expected = self._gpu.get(reservation.model)
        if expected != used.gpu_us and used.requests:
            expected = used.gpu_us if expected is None else expected
            self._gpu[reservation.model] = expected + (used.gpu_us - expected) // 4
        reservation.used = used
        if self.shared is not None and reservation.estimate is not NO_UNITS:
            self._tell(self.shared, reservation, units)
        elif reservation.recorded:
            self._put(reservation)

    def record(self, reservation: Reservation) -> None:
        """Let a request's charge be written, because what it has made is in the database now.

        So a task that a kill made run again is charged once: for its last run.
        """
        if not reservation.recorded:
            reservation.recorded = True
            if self.shared is not None:  # Redis may have forgotten it meanwhile
                self.shared.charged(reservation.key_id)
            if reservation.told:
                self._put(reservation)

    def charge_cached(self, key_id: str, model: str) -> None:
        """Charge a request that was answered from a cache, which is one and uses nothing else.

        Raises QuotaExceeded.
        """
        account = self._account(key_id)
        if error := self._refusal(self._plan_of(key_id), account, CACHED.units):
            raise error
        _add(account.daily, CACHED.units)
        _add(account.monthly, CACHED.units)
        self._row((key_id, model, self._day.name), CACHED)

    def plan(self, key_id: str) -> Plan:
        return self._plan_of(key_id)

    def counted(
        self, key_id: str, plan: Plan, counts: Iterable[tuple[int, int]], wanted: Sequence[int]
    ) -> QuotaExceeded | None:
        """Take over what all gateways have counted of a plan: used and reserved, by quota.

        Returns the refusal of a request that wants so much.
        """
        account, every = self._account(key_id), _Account()
        for quota, (used, reserved) in zip(plan, counts, strict=False):
            for each in (account, every):
                (each.daily if quota.period == DAILY else each.monthly)[quota.unit] = used
            every.reserved[quota.unit] = reserved
            own = account.reserved[quota.unit]
            account.elsewhere[quota.unit] = max(0, reserved - own)
        return self._refusal(plan, every, wanted)

    def expected_gpu(self, model: str) -> int:
        """Return the device microseconds that a request to a model is expected to take."""
        return self._gpu.get(model, _UNKNOWN_GPU)

    # ---- what was counted ----------------------------------------------------------------------

    def read(self, key_id: str) -> list[QuotaState]:
        """Return a key's quotas, and what it has used of them."""
        account, day = self._account(key_id), self._day
        return [
            QuotaState(
                quota,
                account.used(quota),
                account.reserved[quota.unit] + account.elsewhere[quota.unit],
                _end_of(quota, day),
            )
            for quota in self._plan_of(key_id)
        ]

    @property
    def today(self) -> Day:
        self._present()
        return self._day

    def take_rows(self) -> dict[RowId, list[int]]:
        """Take what was settled since the last call, as additions to rows."""
        taken, self._rows = self._rows, {}
        return taken

    def give_back(self, rows: Mapping[RowId, Iterable[int]]) -> None:
        """Put rows back that could not be written."""
        for name, amounts in rows.items():
            self._row(name, amounts)

    def restore(self, daily: Mapping[str, Amounts], monthly: Mapping[str, Amounts]) -> None:
        """Set what keys have used in this day and month to what is written, and what is not yet."""
        self.stale = False
        for account in self._accounts.values():
            account.daily, account.monthly = [0] * len(NAMES), [0] * len(NAMES)
        for key_id, amounts in daily.items():
            _add(self._account(key_id).daily, amounts.units)
        for key_id, amounts in monthly.items():
            _add(self._account(key_id).monthly, amounts.units)
        for (key_id, _, day), counts in self._rows.items():
            if day == self._day.name:
                _add(self._account(key_id).daily, Amounts(*counts).units)
            if day.startswith(self._day.month):
                _add(self._account(key_id).monthly, Amounts(*counts).units)

    # ---- inside --------------------------------------------------------------------------------

    def _tell(self, shared: SharedMeter, reservation: Reservation, units: Units) -> None:
        """Tell other gateways first: what the database says, they know or have lost."""

        def told() -> None:
            reservation.told = True
            if reservation.recorded:
                self._put(reservation)

        shared.charged(reservation.key_id)
        reservation.told = False
        if reservation.name:
            shared.settle(reservation, units, told)
        else:
            told()

    def _account(self, key_id: str) -> _Account:
        self._present()
        if (found := self._accounts.get(key_id)) is None:
            found = self._accounts[key_id] = _Account()
        return found

    def _refusal(
        self, plan: Plan, account: _Account, wanted: Sequence[int]
    ) -> QuotaExceeded | None:
        """Return why a request must not pass: the quota that ends last of those that refuse."""
        refusing = None
        for quota in plan:  # the months come last
            unit = quota.unit
            if wanted[unit] and account.used(quota) + account.reserved[unit] >= quota.limit:
                refusing = quota
        if refusing is None:
            return None
        left = _end_of(refusing, self._day) - self._clock()
        return _exceeded(refusing, account, _end_of(refusing, self._day), max(1.0, left))

    def _put(self, reservation: Reservation) -> None:
        if reservation.used != NOTHING:
            name = (reservation.key_id, reservation.model, self._day.name)
            self._row(name, reservation.used)

    def _row(self, name: RowId, amounts: Iterable[int]) -> None:
        if (row := self._rows.get(name)) is None:
            self._rows[name] = list(amounts)
            return
        row[:] = map(add, row, amounts)

    def _present(self) -> None:
        """Begin a new day where the clock has."""
        now = self._clock()
        if self._day.begins <= now < self._day.ends or self._day.holds(now):
            return
        last, self._day = self._day, day_of(now)
        self.stale = self.stale or self._day.begins < last.begins
        for account in self._accounts.values():
            account.daily = [0] * len(NAMES)
            if self._day.month != last.month or self.stale:
                account.monthly = [0] * len(NAMES)


@lru_cache(maxsize=16)
def _one_of_each(units: Sequence[int]) -> Sequence[int]:
    """Return amounts with one of each of these units."""
    return tuple([int(unit in units) for unit in range(len(NAMES))])


def _add(sums: list[int], units: Units) -> None:
    sums[:] = map(add, sums, units)


def _end_of(quota: Quota, day: Day) -> float:
    return day.ends if quota.period == DAILY else day.month_ends


def _exceeded(quota: Quota, account: _Account, ends: float, wait: float) -> QuotaExceeded:
    limit, used, reserved = (
        shown_unit(quota.unit, amount)
        for amount in (quota.limit, account.used(quota), account.reserved[quota.unit])
    )
    resets_at = datetime.fromtimestamp(ends, UTC).isoformat().replace("+00:00", "Z")
    unit = NAMES[quota.unit].replace("_", " ")
    running = f", and its running requests reserve {reserved:g}" if reserved else ""
    return QuotaExceeded(
        f"This API key has used {used:g} of its {quota.period} quota of {limit:g} {unit}{running}; "
        f"the quota is reset at {resets_at}.",
        details={
            "quota": quota.name,
            "limit": limit,
            "used": used,
            "reserved": reserved,
            "resets_at": resets_at,
        },
        retry_after=wait,
    )
