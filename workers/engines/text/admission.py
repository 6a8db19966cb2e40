"""Chooses which of the waiting texts is admitted next. Pure."""

from collections.abc import Callable, Iterable, Mapping

from workers.engines.text.plan import Sequence

#: Times that others of a higher priority are admitted before a text that does not fit: then they
#: wait until it does, or it would wait for as long as they come.
_MOST_PASSED = 64


def next_to_admit(
    waiting: Iterable[Sequence],
    rows: Mapping[str, int],
    awaits_prompt: Callable[[Sequence], bool],
) -> Sequence | None:
    """Return the first one of the job that has the fewest rows.

    One whose prompt another computes just now is none. Without jobs of several sequences it is
    the first that waits. ``rows``: of the running sequences, by their job.
    """
    found = None
    for sequence in waiting:
        count = rows.get(sequence.id, 0)
        if count and awaits_prompt(sequence):
            continue
        if not count:
            return sequence
        if found is None or count < rows[found.id]:
            found = sequence
    return found


def may_pass(
    first: Sequence, waiting: Iterable[Sequence], rows: Mapping[str, int]
) -> Sequence | None:
    """Return who may be admitted before a text that does not fit, if anybody may.

    A text that made way for others of a higher priority would else keep the next of these out.
    """
    if first.passed >= _MOST_PASSED:
        return None
    higher = (each for each in waiting if each.priority > first.priority and each.id not in rows)
    return next(higher, None)
