"""Which loaded models would leave a device for another one, and when they may. Pure."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from bitinglip.scheduling.ledger import Holding

_BUSY = 1000.0  #: makes any model in use dearer than any that is not


@dataclass(frozen=True, slots=True)
class Patience:
    """The operator's choices."""

    min_residency: float = 20.0  #: seconds that a model in use keeps its place at most
    residency_factor: float = 4.0  #: ... or so many times its load time, if that is less
    patience: float = 5.0  #: seconds that requests wait before a model in use has to go


@dataclass(frozen=True, slots=True)
class Choice:
    """Models that would make enough room on a device."""

    holdings: Collection[Holding]
    cost: float


def may_leave_at(holding: Holding, waiting_since: float, rules: Patience) -> float | None:
    """From when on it may be evicted for somebody who has waited since then; None: never.

    Unused, it has to have been so for as long as it takes to load: what comes back sooner would
    have been cheaper to keep. In use, it has its time first, and the others' wait must be long.
    """
    if holding.pinned or holding.state != "ready":
        return None
    settled = holding.loaded_at + min(
        rules.min_residency, rules.residency_factor * holding.load_seconds
    )
    if holding.idle:
        return min(settled, holding.used_at + holding.load_seconds)
    return max(settled, waiting_since + rules.patience)


def cost(holding: Holding, now: float) -> float:
    """What it would cost to be without it: its load time, the less the longer nobody used it."""
    if holding.idle:
        return holding.load_seconds / (1.0 + max(0.0, now - holding.used_at))
    return _BUSY + holding.load_seconds * (1 + holding.in_flight + holding.waiting)


def choose(holdings: Iterable[Holding], device: str, missing: int, now: float) -> Choice | None:
    """The cheapest of these that together free ``missing`` bytes of a device; None: not enough.

    Greedy by cost per byte, then whatever turns out not to be needed stays, the dearest first.
    """
    ranked = sorted(holdings, key=lambda h: (cost(h, now) / max(1, h.devices[device]), h.id))
    chosen: list[Holding] = []
    freed = 0
    for holding in ranked:
        if freed >= missing:
            break
        chosen.append(holding)
        freed += holding.devices[device]
    if freed < missing:
        return None
    for holding in sorted(chosen, key=lambda h: -cost(h, now)):
        if freed - holding.devices[device] >= missing:
            chosen.remove(holding)
            freed -= holding.devices[device]
    return Choice(chosen, sum(cost(holding, now) for holding in chosen))
