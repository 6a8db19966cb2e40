"""Bounds the entries that any key can cause, so that no key pushes the others' out of the log.

Each key has a budget of them; beyond it they are counted, and the counts are entered each hour.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bitinglip.audit.entry import Action, Actor, Entry
from bitinglip.audit.refusals import BURST, SUMMARY_SECONDS, Budget

#: what needs no scope; all else takes a key that may operate the server
OFTEN = frozenset({Action.TOKEN_ISSUE, Action.TOKEN_REVOKE})


@dataclass(slots=True)
class _Key:
    budget: Budget
    actor: Actor
    counts: dict[Action, int] = field(default_factory=dict)  #: beyond the budget


class Often:
    """Decides which of these entries are entered; ``remember`` keeps those of the counts."""

    def __init__(
        self, remember: Callable[[Entry], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._remember = remember
        self._clock = clock
        self._keys: dict[str, _Key] = {}
        self._counted_at = clock()

    def __len__(self) -> int:
        return len(self._keys)

    def takes(self, entry: Entry) -> bool:
        """Return whether to enter this; it is counted otherwise. Other entries are always taken."""
        if entry.action not in OFTEN:
            return True
        actor, now = entry.actor, self._clock()
        if (key := self._keys.get(actor.id)) is None:
            key = self._keys[actor.id] = _Key(Budget(at=now), Actor(actor.id, actor.name))
        if key.budget.take(now):
            return True
        key.counts[entry.action] = key.counts.get(entry.action, 0) + 1
        return False

    def tick(self) -> None:
        """Enter the counts if their time has come."""
        if self._clock() - self._counted_at >= SUMMARY_SECONDS:
            self.finish()

    def finish(self) -> None:
        """Enter the counts, and forget keys that have their whole budget again."""
        now = self._clock()
        seconds, self._counted_at = round(now - self._counted_at), now
        for key in self._keys.values():
            for action, count in key.counts.items():
                after = {"count": count, "seconds": seconds}
                self._remember(Entry(action, key.actor, after=after))
            key.counts.clear()
        self._keys = {
            name: key for name, key in self._keys.items() if key.budget.at_hand(now) < BURST
        }
