"""Admission control: rejects a request before queueing it if it cannot be served. Pure."""

from collections.abc import Callable
from functools import partial

from bitinglip import errors
from bitinglip.scheduling.dispatch.model_queue import ModelQueue
from bitinglip.scheduling.queue.overload import OverloadController
from bitinglip.scheduling.queue.priority import Priority

_SHORTEST, _LONGEST = 1.0, 60.0  #: bounds of Retry-After in seconds
_LONGEST_LOAD = 600.0  #: the same, where the model must be loaded first
_KEPT = 16  #: one place in 16 is kept for keys that have nothing in the queue


def check(
    priority: Priority,
    key: str,
    model_queue: ModelQueue,
    *,
    of_key: int,
    most_waiting: int,
    overload: OverloadController,
    top_rank: int,
    slots: int,
    load_eta: Callable[[], float | None] = lambda: None,
) -> None:
    """Raise Overloaded or QueueFull if a request of this priority must not join the queue.

    ``of_key``: the waiting requests of its key, for any model; ``top_rank``: the highest
    tier's; ``load_eta``: seconds until a model without slots has some, if that is known.
    """
    retry_after = partial(_retry_after, model_queue, slots, load_eta)
    if priority.batch and overload.sheds_batch:
        raise errors.Overloaded(retry_after=retry_after())
    share = overload.share(priority.rank, top_rank)
    if not _has_place(model_queue, key, most_waiting, share):
        raise errors.QueueFull(
            details={"model": model_queue.model, "waiting": model_queue.depth},
            retry_after=retry_after(),
        )
    if priority.max_waiting is not None and of_key >= priority.max_waiting * share:
        raise errors.QueueFull(
            "Too many requests of this key wait already.",
            details={"model": model_queue.model, "waiting_of_key": of_key},
            retry_after=retry_after(),
        )


def _has_place(model_queue: ModelQueue, key: str, most_waiting: int, share: float) -> bool:
    """Return True if one more request of this key may wait.

    A key that has much waiting must not lock the others out. So the last places are kept for keys
    with nothing in the queue, and in its tier's part of the queue a key counts the others only for
    as much as it has itself (max-min fairness).
    """
    others = model_queue.counts()
    own = others.pop(key, 0)
    if model_queue.depth >= most_waiting - (most_waiting // _KEPT if own else 0):
        return False
    if model_queue.depth < most_waiting * share:
        return True
    return own + sum(min(count, own + 1) for count in others.values()) < most_waiting * share


def _retry_after(
    model_queue: ModelQueue, slots: int, load_eta: Callable[[], float | None]
) -> float:
    """Estimate the seconds until half of the waiting requests have begun."""
    if not slots and (loaded := load_eta()) is not None:
        return min(_LONGEST_LOAD, max(_SHORTEST, loaded))
    wait = model_queue.service_time.wait(model_queue.depth // 2, slots)
    return _SHORTEST if wait is None else min(_LONGEST, max(_SHORTEST, wait))
