"""Who may wait: refused here, before any work is done, is what could only wait in vain. Pure."""

from bitinglip import errors
from bitinglip.scheduling.lane import Lane
from bitinglip.scheduling.load import LoadFactor
from bitinglip.scheduling.standing import Standing

_SHORTEST, _LONGEST = 1.0, 60.0  #: seconds that a refused client is asked to stay away
_KEPT = 16  #: one place in so many is kept for keys that have nothing in the queue


def check(
    standing: Standing,
    key: str,
    lane: Lane,
    *,
    of_key: int,
    most_waiting: int,
    load: LoadFactor,
    top_rank: int,
    slots: int,
) -> None:
    """Raises Overloaded or QueueFull if a request of this standing must not join the queue.

    ``of_key``: how many requests of its key wait already for any model; ``top_rank``: the highest
    tier's.
    """
    if standing.batch and load.sheds_batch:
        raise errors.Overloaded(retry_after=_stay_away(lane, slots))
    share = load.share(standing.rank, top_rank)
    if not _has_place(lane, key, most_waiting, share):
        raise errors.QueueFull(
            details={"model": lane.model, "waiting": lane.depth},
            retry_after=_stay_away(lane, slots),
        )
    if standing.max_waiting is not None and of_key >= standing.max_waiting * share:
        raise errors.QueueFull(
            "Too many requests of this key wait already.",
            details={"model": lane.model, "waiting_of_key": of_key},
            retry_after=_stay_away(lane, slots),
        )


def _has_place(lane: Lane, key: str, most_waiting: int, share: float) -> bool:
    """Whether one more of this key may wait.

    A key that has much waiting must not lock the others out. So the last places are kept for keys
    with nothing in the queue, and in its tier's part of the queue a key counts the others only for
    as much as it has itself (max-min fairness).
    """
    others = lane.waiting.counts()
    own = others.pop(key, 0)
    if lane.depth >= most_waiting - (most_waiting // _KEPT if own else 0):
        return False
    if lane.depth < most_waiting * share:
        return True
    return own + sum(min(count, own + 1) for count in others.values()) < most_waiting * share


def _stay_away(lane: Lane, slots: int) -> float:
    """By then half of those that wait now should have begun."""
    wait = lane.pace.wait(lane.depth // 2, slots)
    return _SHORTEST if wait is None else min(_LONGEST, max(_SHORTEST, wait))
