"""Keeps the states of limits in memory; ``access.shared`` has those of several gateways."""

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from bitinglip.access.limits import gcra
from bitinglip.access.limits.gcra import FULL, Rate, Reading

MOST_CELLS = 100_000  #: some 20 MB


class Cell(NamedTuple):
    """Holds one limit of one caller."""

    id: str
    rate: Rate


class Decision(NamedTuple):
    """Tells what became of a request for units; all of it belongs to one moment."""

    wait: int  #: microseconds until it would pass; 0: it has passed, everything is taken
    readings: tuple[Reading, ...]  #: by cell
    refusing: tuple[int, ...]  #: indices of the cells that refused


#: makes one without the constructor of the class, which is Python
_decision: Callable[[tuple[int, tuple[Reading, ...], tuple[int, ...]]], Decision] = partial(
    tuple.__new__, Decision
)


class Store(Protocol):
    """Keeps the state of cells. A shared one has a clock of its own and may take its time."""

    async def take(
        self, cells: Sequence[Cell], now: int, *, cost: int = 1, share: int = FULL
    ) -> Decision:
        """Take units of all cells, or of none. A cost of 0 only reads."""

    def refund(self, cells: Sequence[Cell], *, cost: int = 1, share: int = FULL) -> None:
        """Give units back that were taken under this share; it need not have happened at once."""


class MemoryStore:
    """Keeps cells in this process, at most so many: those that would be full again first go.

    A cell that has earned everything back is the same as none, so dropping it changes nothing.
    """

    def __init__(self, most: int = MOST_CELLS) -> None:
        self._most = most
        self._cells: dict[str, tuple[int, int]] = {}  #: quota, tat in its ticks
        self._changed: set[str] = set()

    def __len__(self) -> int:
        return len(self._cells)

    async def take(
        self, cells: Sequence[Cell], now: int, *, cost: int = 1, share: int = FULL
    ) -> Decision:
        return self.take_now(cells, now, cost=cost, share=share)

    def take_now(
        self, cells: Sequence[Cell], now: int, *, cost: int = 1, share: int = FULL
    ) -> Decision:
        """Take units without waiting for anything: all cells are checked, then all are changed."""
        held, waits = self._cells, 0
        states: dict[str, tuple[int, int]] = {}
        readings: list[Reading] = []
        for cell in cells:
            name, rate = cell
            found = held.get(name)
            if found is None:
                state = 0
            else:
                state = found[1] if found[0] == rate.quota else self._state(cell)
            new, wait, left = gcra.ask(rate, state, now, cost, share)
            states[name] = rate.quota, new
            readings.append(left)
            waits += wait
        if waits or not cost:
            return self._only_read(cells, now, cost, share)
        if len(held) + len(states) > self._most:
            self._shrink(now)
        self._cells.update(states)
        self._changed.update(states)
        return _decision((0, tuple(readings), ()))

    def _only_read(self, cells: Sequence[Cell], now: int, cost: int, share: int) -> Decision:
        """Return what there is of each cell, and which of them refuse; nothing is taken."""
        states = [self._state(cell) for cell in cells]
        both = list(zip(cells, states, strict=True))
        waits = [gcra.ask(cell.rate, state, now, cost, share)[1] for cell, state in both]
        readings = [gcra.read(cell.rate, state, now, share) for cell, state in both]
        refusing = [index for index, wait in enumerate(waits) if wait]
        return Decision(max(waits, default=0), tuple(readings), tuple(refusing))

    def refund(self, cells: Sequence[Cell], *, cost: int = 1, share: int = FULL) -> None:
        for cell in cells:
            if cell.id in self._cells:
                tat = gcra.refunded(cell.rate, self._state(cell), cost=cost, share=share)
                self._cells[cell.id] = (cell.rate.quota, tat)
                self._changed.add(cell.id)

    def changes(self) -> dict[str, int]:
        """Return the cells changed since the last call: microseconds until they are full again."""
        found = {}
        for name in self._changed:
            if name in self._cells:
                quota, tat = self._cells[name]
                found[name] = -(-tat // quota)
        self._changed.clear()
        return found

    def unwritten(self, names: Iterable[str]) -> None:
        """Count cells as changed once more, after a failure to write them."""
        self._changed.update(names)

    def restore(self, full_again: Mapping[str, int]) -> None:
        """Take over cells as ``changes`` gave them, on the clock that is used from now on."""
        self._cells.update({name: (1, moment) for name, moment in full_again.items()})

    def _state(self, cell: Cell) -> int:
        found = self._cells.get(cell.id)
        if found is None:
            return 0
        quota, tat = found
        if quota == cell.rate.quota:
            return tat
        return tat * cell.rate.quota // quota  # its limit is another one now; the time stays

    def _shrink(self, now: int) -> None:
        """Drop what has earned everything back; if that is not enough, what is nearest to it."""
        live = {name: held for name, held in self._cells.items() if held[1] > now * held[0]}
        excess = len(live) - self._most * 7 // 8
        if excess > 0:
            for name in heapq.nsmallest(
                excess, live, key=lambda name: live[name][1] / live[name][0]
            ):
                del live[name]
        self._cells = live
        self._changed &= live.keys()
