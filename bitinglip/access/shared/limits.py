"""Takes from limits that several gateways share, through Redis, each request in one call.

Redis's clock is that of all of them. What a gateway holds (places, reservations) it renews for as
long as it lives; what it gives back is sent after what it took, and is not waited for.
"""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from bitinglip.access.limits import gcra
from bitinglip.access.limits.gcra import FULL, Rate
from bitinglip.access.limits.store import Cell, Decision
from bitinglip.access.shared.ticks import asked, given, ticks
from bitinglip.access.usage.quotas import Plan
from bitinglip.errors import LimitsUnavailable
from bitinglip.redis.errors import RedisAway
from bitinglip.redis.scripts import Script

if TYPE_CHECKING:
    from bitinglip.redis.link import RedisLink

_TAKE, _GIVE, _RENEW = (
    Script.beside(__file__, f"{name}.lua") for name in ("take", "give", "renew")
)
_MICROSECONDS = 1_000_000
_AT_ONCE = 500  #: places and reservations that one call renews
_MOST = 1 << 63  #: what Redis counts to
_HEAD = 5  #: numbers of an answer before those of the rates


class RateRequest(NamedTuple):
    """Describes units of one rate that a request takes."""

    cell: Cell
    cost: int = 1
    share: int = FULL


class QuotaLimit(NamedTuple):
    """Describes a quota as a script reads it."""

    monthly: bool
    unit: int
    limit: int
    wanted: bool  #: whether the request draws on it


class QuotaRequest(NamedTuple):
    """Describes what a request draws on of its key's quotas."""

    day: str  #: 2026-11-27
    plan: tuple[QuotaLimit, ...]
    of: Plan  #: what ``plan`` was made of; the key's own may be another once Redis answers
    reserve: tuple[int, ...] = ()  #: amounts, by unit; none where it only asks


class TakeResult(NamedTuple):
    """Holds the outcome of a request, all of it of one moment."""

    decision: Decision  #: of its rates
    states: tuple[int, ...]  #: by rate: microseconds until all is earned back
    room: bool  #: whether there was a place
    places: int  #: that the key had before
    passes: bool
    unknown: bool  #: what was used is not known to Redis: ``QuotaRequest`` have to be told first
    used: tuple[tuple[int, int], ...]  #: by quota: what is used, and what is reserved
    now: int  #: Redis's time, in microseconds


class SharedLimits:
    """Owns this gateway's places and reservations in shared limits."""

    def __init__(self, link: "RedisLink") -> None:
        self.link = link
        self._lease = round(link.settings.lease * _MICROSECONDS)
        self._numbers = count()
        self._places: dict[str, set[str]] = {}  #: names of places held, by key
        self._reserved: dict[str, dict[str, str]] = {}  #: amounts by name, by key
        link.on_return(self.renew)

    @property
    def away(self) -> bool:
        """Return whether this gateway's own limits hold now.

        Raises LimitsUnavailable where the settings refuse requests instead.
        """
        if self.link.away is None:
            return False
        self.fall_back()
        return True

    def fall_back(self) -> None:
        """Raise LimitsUnavailable, after a failed call, where the settings refuse requests then."""
        if self.link.settings.when_away == "refuse":
            raise LimitsUnavailable()

    def name(self) -> str:
        """Return a new, unique name for a place or a reservation."""
        return f"{self.link.gateway}.{next(self._numbers)}"

    async def take(
        self,
        key_id: str,
        rates: Sequence[RateRequest] = (),
        *,
        reads: bool = False,
        name: str = "",
        places: int | None = None,
        quotas: QuotaRequest | None = None,
    ) -> TakeResult:
        """Take all that is asked for, or nothing. Raises RedisAway.

        ``name`` is that of the place and of the reservation. A caller that is cancelled meanwhile
        has taken nothing in the end.
        """
        keys = [self.key(key_id, each.cell.id) for each in rates]
        if places is not None:
            keys.append(self._of_places(key_id))
        plan: tuple[QuotaLimit, ...] = ()
        args: list[Any] = [len(rates), int(reads), -1 if places is None else places, name]
        if quotas is not None:
            plan = quotas.plan
            keys += self.used_keys(key_id, quotas.day)
            keys.append(self.reserved_key(key_id))
        args += [self._lease, len(plan)]
        for each in rates:
            args += asked(each.cell.rate, each.cost, each.share)
        for drawn in plan:
            args += (1 + drawn.monthly, drawn.unit + 1, drawn.limit, int(drawn.wanted))
        if quotas is not None:
            args += quotas.reserve
        # A place or a reservation of this name tells the script that it has run already.
        is_known = bool(name) and (places is not None or (quotas is not None and quotas.reserve))
        once = bool(rates) and not (reads or is_known)
        call = self.link.call(_TAKE, keys, args, once=once)
        try:
            answer = await asyncio.shield(call)
        except asyncio.CancelledError:
            call.add_done_callback(partial(self._undo, key_id, rates, reads, name, places))
            raise
        taken = _understood(answer, rates, len(plan))
        if taken.passes and not reads and name:
            self._hold(key_id, name, places is not None, quotas)
        return taken

    def give(self, key_id: str, rates: Iterable[RateRequest] = (), *, place: str = "") -> None:
        """Give back units, and a place by its name, soon: the call is not waited for.

        Where its connection breaks, units may stay taken until they are earned back.
        """
        rates = list(rates)
        keys = [self.key(key_id, each.cell.id) for each in rates]
        args: list[Any] = [len(rates), place]
        for each in rates:
            args += given(each.cell.rate, each.cost, each.share)
        if place:
            keys.append(self._of_places(key_id))
            _discard(self._places, key_id, place)
        if keys:
            self.link.tell(_GIVE, keys, args, once=bool(rates))

    def hold_place(self, key_id: str) -> str:
        """Hold a place that this gateway gave while Redis was away; return its name."""
        name = self.name()
        self._hold(key_id, name, place=True)
        return name

    def settled(self, key_id: str, name: str) -> None:
        """Drop a reservation that has been settled."""
        _discard(self._reserved, key_id, name)

    async def renew(self) -> None:
        """Renew all places and reservations of this gateway for another lease; Redis may have lost
        them."""
        for key_id in list(self._places.keys() | self._reserved.keys()):
            places = list(self._places.get(key_id, ()))
            reserved = list(self._reserved.get(key_id, {}).items())
            keys = [self._of_places(key_id), self.reserved_key(key_id)]
            for start in range(0, max(len(places), len(reserved)), _AT_ONCE):
                part = slice(start, start + _AT_ONCE)
                named = [text for pair in reserved[part] for text in pair]
                args = [self._lease, len(places[part]), *places[part], *named]
                self.link.tell(_RENEW, keys, args)

    @property
    def held(self) -> tuple[int, int]:
        """Count the places and the reservations that this gateway holds."""
        places = sum(map(len, self._places.values()))
        return places, sum(map(len, self._reserved.values()))

    def key(self, key_id: str, name: str) -> str:
        """Return the name of a key's state; all those of a key are on one node of a cluster."""
        return f"{self.link.prefix}{{{key_id}}}:{name}"

    def used_keys(self, key_id: str, day: str) -> list[str]:
        """Return the names of the counts of a key's use in a day, and in its month."""
        month = day.rpartition("-")[0]
        return [self.key(key_id, f"used:{day}"), self.key(key_id, f"used:{month}")]

    def reserved_key(self, key_id: str) -> str:
        return self.key(key_id, "reserved")

    # ---- inside --------------------------------------------------------------------------------

    def _of_places(self, key_id: str) -> str:
        return self.key(key_id, "places")

    def _hold(
        self, key_id: str, name: str, place: bool, quotas: QuotaRequest | None = None
    ) -> None:
        if place:
            self._places.setdefault(key_id, set()).add(name)
        if quotas is not None and quotas.reserve:
            amounts = " ".join(map(str, quotas.reserve))
            self._reserved.setdefault(key_id, {})[name] = amounts

    def _undo(
        self,
        key_id: str,
        rates: Sequence[RateRequest],
        reads: bool,
        name: str,
        places: int | None,
        call: "asyncio.Future[Any]",
    ) -> None:
        """Give back what was taken for a request that was cancelled. A reservation expires by
        itself."""
        if call.cancelled() or call.exception() is not None:
            return
        with suppress(RedisAway):
            if not reads and _understood(call.result(), rates, 0).passes:
                self.give(key_id, rates, place=name if places is not None else "")


def _discard(held: dict[str, Any], key_id: str, name: str) -> None:
    if (of_key := held.get(key_id)) is None:
        return
    if isinstance(of_key, set):
        of_key.discard(name)
    else:
        of_key.pop(name, None)
    if not of_key:
        del held[key_id]


def _understood(answer: Any, rates: Sequence[RateRequest], quotas: int) -> TakeResult:
    """Parse an answer. Raises RedisAway for one that another program has spoiled."""
    try:
        return _read(answer, rates, quotas)
    except (TypeError, ValueError, IndexError, OverflowError):
        raise RedisAway("it holds what is no count") from None


def _count(text: Any) -> int:
    """Parse a number as scripts write it. Raises ValueError for anything else."""
    if abs(number := int(text)) > _MOST:
        raise ValueError("no such number is ours")
    return number


def _read(answer: Sequence[Any], rates: Sequence[RateRequest], quotas: int) -> TakeResult:
    """Compute what the limits have left, from the states that one call found."""
    now, room, places, passes, unknown = map(int, answer[:_HEAD])
    took = bool(passes)
    readings, refusing, states, wait = [], [], [], 0
    for index, each in enumerate(rates):
        rate: Rate = each.cell.rate
        whole, part = map(_count, answer[_HEAD + 2 * index : _HEAD + 2 * index + 2])
        tat = ticks(whole, part, rate)
        new, longer = gcra.step(rate, tat, now, each.cost, each.share)
        if longer:
            refusing.append(index)
            wait = max(wait, longer)
        left = new if took else tat
        readings.append(gcra.read(rate, left, now, each.share))
        states.append(max(0, -(-left // rate.quota) - now))
    rest = answer[_HEAD + 2 * len(rates) :]
    counts = list(map(_count, rest))
    used = tuple((counts[2 * n], counts[2 * n + 1]) for n in range(quotas if rest else 0))
    decision = Decision(wait, tuple(readings), tuple(refusing))
    return TakeResult(decision, tuple(states), bool(room), places, took, bool(unknown), used, now)
