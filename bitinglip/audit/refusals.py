"""Counts refused requests, so that a flood of them neither fills the log nor costs the loop time.

The first refusal of an address is entered at once; further ones are counted, and the count is
entered after each minute. The entries have a budget, since any client can cause them: beyond it,
refusals are only counted together. So clients without a key cannot push other entries out of the
log.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bitinglip.audit.entry import Action, Actor, Entry

MINUTE = 60.0  #: seconds between two entries of one address
SUMMARY_SECONDS = 3600.0  #: between two entries of what was beyond the budget
BURST = 200  #: entries that may come at once
SECONDS_EACH = 120.0  #: after which one more may come: 720 a day
MOST_SOURCES = 1000  #: addresses and reasons that are counted apart
_UNKNOWN = Actor("unknown")


@dataclass(slots=True)
class _Source:
    """Counts refusals of one address, key, reason and target since its last entry."""

    actor: Actor
    action: Action
    target: str
    code: str
    count: int = 0


@dataclass(slots=True)
class Budget:
    """Allows ``BURST`` entries at once, and one more in each ``SECONDS_EACH``."""

    left: float = BURST
    at: float = field(default_factory=time.monotonic)

    def at_hand(self, now: float) -> float:
        return min(BURST, self.left + (now - self.at) / SECONDS_EACH)

    def take(self, now: float) -> bool:
        """Take one entry; return False if there is none."""
        self.left = self.at_hand(now)
        self.at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True


class Refusals:
    """Turns refusals into entries; ``remember`` keeps these. ``tick`` is called every second."""

    def __init__(
        self, remember: Callable[[Entry], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._remember = remember
        self._clock = clock
        self._budget = Budget(at=clock())
        self._sources: dict[tuple[str, ...], _Source] = {}
        self._others: dict[str, int] = {}  #: refusals beyond the budget, by code
        self._counted_at = self._summed_at = clock()

    def note(
        self, action: Action, actor: Actor, code: str, *, network: str = "", target: str = ""
    ) -> None:
        """Count a refusal; addresses of one ``network`` count as one. It takes microseconds."""
        key = (action, actor.id, network or actor.address, code, target)
        source = self._sources.get(key)
        if source is not None:
            source.count += 1
        elif len(self._sources) < MOST_SOURCES and self._budget.take(self._clock()):
            self._sources[key] = _Source(actor, action, target, code)
            self._remember(Entry(action, actor, target, code))
        else:
            self._others[code] = self._others.get(code, 0) + 1

    def tick(self) -> None:
        """Make the entries whose time has come."""
        now = self._clock()
        if now - self._counted_at >= MINUTE:
            self._count(now)
        if self._others and now - self._summed_at >= SUMMARY_SECONDS:
            self._sum(now)

    def finish(self) -> None:
        """Make the entries of all that was counted, on the way down."""
        now = self._clock()
        self._count(now)
        if self._others:
            self._sum(now)

    def _count(self, now: float) -> None:
        seconds, self._counted_at = round(now - self._counted_at), now
        going_on: dict[tuple[str, ...], _Source] = {}
        for key, source in self._sources.items():
            count, source.count = source.count, 0
            if not count:
                continue
            going_on[key] = source
            if self._budget.take(now):
                after = {"count": count, "seconds": seconds}
                self._remember(
                    Entry(source.action, source.actor, source.target, source.code, after=after)
                )
            else:
                self._others[source.code] = self._others.get(source.code, 0) + count
        self._sources = going_on

    def _sum(self, now: float) -> None:
        seconds, self._summed_at = round(now - self._summed_at), now
        after = {"count": sum(self._others.values()), "seconds": seconds, "by_code": self._others}
        self._remember(Entry(Action.AUTH_REFUSED, _UNKNOWN, after=after))
        self._others = {}
