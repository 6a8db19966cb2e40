"""Keeps the running sequences in their order, and says which of them is preempted. Pure."""

from bisect import insort
from collections import Counter
from collections.abc import Iterator

from workers.engines.text.plan import Sequence


class Running:
    """Holds the sequences that have rows: of the highest priority first, then oldest."""

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []
        self._rows: Counter[str] = Counter()  #: of each job that has some

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._sequences

    @property
    def last(self) -> Sequence:
        """Return the youngest of the lowest priority."""
        return self._sequences[-1]

    @property
    def some_have_several(self) -> bool:
        """Return whether a job has more than one row."""
        return len(self._rows) < len(self._sequences)

    def rows(self, job_id: str) -> int:
        """Count the rows of a job."""
        return self._rows[job_id]

    def add(self, sequence: Sequence) -> None:
        insort(self._sequences, sequence, key=lambda each: -each.priority)
        self._rows[sequence.id] += 1

    def remove(self, sequence: Sequence) -> None:
        self._sequences.remove(sequence)
        self._rows[sequence.id] -= 1
        if not self._rows[sequence.id]:
            del self._rows[sequence.id]

    def victim_after(self, sequence: Sequence) -> Sequence:
        """Return the sequence to preempt for one's next token; those before it are in the plan."""
        place = self._sequences.index(sequence)
        lowest = self.last.priority
        later = [each for each in self._sequences[place:] if each.priority == lowest]
        return self._of_most_rows(later)

    def victim_of_many(self) -> Sequence | None:
        """Return the sequence to preempt for a job without a row: of one that has several."""
        victim = self._of_most_rows(self._sequences)
        return victim if self._rows[victim.id] > 1 else None

    def _of_most_rows(self, sequences: list[Sequence]) -> Sequence:
        """Return the last of those whose job has most rows."""
        return max(reversed(sequences), key=lambda each: self._rows[each.id])
