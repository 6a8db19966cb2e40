"""Holds the rows of a step to grammars, as the engine asks."""

import time
from collections.abc import Iterable

from workers.engines.text.grammar.constraint import Constraint
from workers.engines.text.plan import Sequence

#: Seconds for which a step waits for its masks, which are looked for beside its forward pass. A row
#: whose mask takes longer leaves the step, and its neighbours go on.
_MOST_WAIT = 0.03


class ConstrainedRows:
    """Holds the constraint of each running sequence that has one."""

    def __init__(self) -> None:
        self._constraints: dict[Sequence, Constraint] = {}

    def __len__(self) -> int:
        return len(self._constraints)

    def add(self, sequence: Sequence, constraint: Constraint) -> None:
        self._constraints[sequence] = constraint

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, which may have no constraint."""
        self._constraints.pop(sequence, None)

    def advance(self, sequence: Sequence, token: int) -> None:
        """Tell the constraint of a sequence, if it has one, of the token that was chosen."""
        if (constraint := self._constraints.get(sequence)) is not None:
            constraint.advance(token)

    def ended(self) -> list[tuple[Sequence, str | None]]:
        """Let late rows go on that are late no more; return those that end, with their errors."""
        ended: list[tuple[Sequence, str | None]] = []
        for sequence, constraint in self._constraints.items():
            if not constraint.settled:
                continue
            sequence.paused = False
            if constraint.complete or constraint.error is not None:
                ended.append((sequence, constraint.error))
        return ended

    def unready(self, sequences: Iterable[Sequence]) -> set[Sequence]:
        """Wait for masks; return the sequences that no token can be chosen for in this step."""
        if not self._constraints:
            return set()
        end = time.monotonic() + _MOST_WAIT
        unready: set[Sequence] = set()
        for sequence in sequences:
            constraint = self._constraints.get(sequence)
            if constraint is None:
                continue
            settled = constraint.wait(max(0.0, end - time.monotonic()))
            if not settled or constraint.complete or constraint.error is not None:
                unready.add(sequence)
        return unready
