"""The priority of a job is its queue level, weight and limits, from its tier and its request."""

from functools import lru_cache
from typing import Literal

import msgspec

from bitinglip.settings import Tier, Tiers

RequestPriority = Literal["low", "normal", "high"]
_STEPS: dict[RequestPriority, int] = {"low": -1, "normal": 0, "high": 1}


class Priority(msgspec.Struct, frozen=True):
    """A job is queued with this level, weight and limit."""

    rank: int = 0  #: the tier's priority
    level: int = 0  #: where it queues: higher goes first; a request cannot pass the next tier's
    weight: float = 1.0  #: its key's part of the machine among keys of the same level
    max_waiting: int | None = None  #: how many requests of its key may wait
    batch: bool = False  #: of low priority: the first to be refused under load


def priority_of(tier: Tier, priority: RequestPriority = "normal") -> Priority:
    """Return the priority of a request of a key of this tier."""
    return _made(tier.priority, tier.weight, tier.max_queue, priority)


@lru_cache(maxsize=64)
def _made(rank: int, weight: float, max_waiting: int | None, priority: RequestPriority) -> Priority:
    level = 2 * rank + _STEPS[priority]
    return Priority(rank, level, weight, max_waiting, batch=priority == "low")


def tier_of(tiers: Tiers, name: str) -> Tier:
    """Return the settings of a tier; of the lowest for one that they do not name."""
    match name:
        case "pro":
            return tiers.pro
        case "enterprise":
            return tiers.enterprise
        case "operator":
            return tiers.operator
        case _:
            return tiers.free
