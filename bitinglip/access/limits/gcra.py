"""Implements the generic cell rate algorithm in integers: one number per caller and limit. Pure.

It is asked at every request, so it compares by hand what ``max`` would: a call costs more.

The number is the theoretical arrival time (``tat``): the moment at which all that was taken has
been earned back. Times are microseconds multiplied by the quota ("ticks"), in which one unit takes
exactly the window, so nothing is ever rounded; only waits are, upwards, on their way out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

SECOND = 1_000_000
FULL = 1000  #: the share of its rate that a caller keeps, in thousandths


@dataclass(frozen=True, slots=True)
class Rate:
    """Allows ``quota`` units per window in the long run, and ``burst`` of them at once."""

    quota: int
    window: int  #: microseconds
    burst: int

    def __post_init__(self) -> None:
        if min(self.quota, self.window, self.burst) < 1:
            raise ValueError("a rate needs a quota, a window and a burst of at least 1")


class Reading(NamedTuple):
    """Tells what a limit has left at one moment; times are in microseconds."""

    remaining: int
    next_unit: int  #: until one unit more is there; 0 when none is missing
    reset: int  #: until all are there


class Step(NamedTuple):
    """Describes the outcome of asking for some units."""

    tat: int  #: the new state; where ``wait`` is not 0 it must not be kept
    wait: int  #: microseconds until the same request passes; 0 if it passes now


#: make tuples of these classes without their constructors, which are Python and take twice as long
_reading: Callable[[tuple[int, int, int]], Reading] = partial(tuple.__new__, Reading)
_step: Callable[[tuple[int, int]], Step] = partial(tuple.__new__, Step)


def step(rate: Rate, tat: int, now: int, cost: int = 1, share: int = FULL) -> Step:
    """Ask for ``cost`` units at ``now`` microseconds. Raises ValueError for more than the burst.

    Under a ``share`` below FULL units are earned more slowly and so fewer are at hand, but one
    always passes in the end.
    """
    return _step(ask(rate, tat, now, cost, share)[:2])


def ask(
    rate: Rate, tat: int, now: int, cost: int = 1, share: int = FULL
) -> tuple[int, int, Reading]:
    """Do as ``step``; return its two numbers, and what is left if they are kept."""
    quota, unit = rate.quota, rate.window
    if cost > rate.burst:
        raise ValueError("more units than the burst holds never pass")
    most = rate.burst * unit
    if share != FULL:
        unit = unit_ticks(rate, share)
    ticks, taken = now * quota, cost * unit
    debt = (tat - ticks if tat > ticks else 0) + taken
    over = debt - (most if most > taken else taken)
    wait = -(-over // quota) if over > 0 else 0
    return ticks + debt, wait, _left(debt, most if most > unit else unit, unit, quota)


def refunded(rate: Rate, tat: int, *, cost: int = 1, share: int = FULL) -> int:
    """Return the state without the units that were taken under this share."""
    return tat - cost * unit_ticks(rate, share)


def read(rate: Rate, tat: int, now: int, share: int = FULL) -> Reading:
    """Read what is left, without taking anything."""
    unit, most = rate.window, rate.burst * rate.window
    if share != FULL and (unit := unit_ticks(rate, share)) > most:
        most = unit
    return _left(tat - now * rate.quota, most, unit, rate.quota)


def _left(debt: int, most: int, unit: int, quota: int) -> Reading:
    """Read what is left of ``most`` ticks of which so many are owed."""
    if debt <= 0:
        return _reading((most // unit, 0, 0))
    remaining = (most - debt) // unit if most > debt else 0
    missing = 0 if remaining >= most // unit else debt - most + (remaining + 1) * unit
    return _reading((remaining, -(-missing // quota), -(-debt // quota)))


def unit_ticks(rate: Rate, share: int) -> int:
    """Return the ticks of one unit under a share; those of all of it are the window's."""
    return rate.window if share == FULL else -(-rate.window * FULL // share)
