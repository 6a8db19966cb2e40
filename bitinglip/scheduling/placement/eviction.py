"""Which loaded models would leave a device for another one, and when they may. Pure."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from bitinglip.scheduling.placement.ledger import Reservation

_BUSY = 1000.0  #: makes any model in use dearer than any that is not


@dataclass(frozen=True, slots=True)
class EvictionRules:
    """The operator's choices."""

    min_residency: float = 20.0  #: seconds that a model in use keeps its place at most
    residency_factor: float = 4.0  #: ... or so many times its load time, if that is less
    patience: float = 5.0  #: seconds that requests wait before a model in use has to go


@dataclass(frozen=True, slots=True)
class Choice:
    """Models that would make enough room on a device."""

    reservations: Collection[Reservation]
    cost: float


def may_leave_at(
    reservation: Reservation, waiting_since: float, rules: EvictionRules
) -> float | None:
    """From when on it may be evicted for somebody who has waited since then; None: never.

    Unused, it has to have been so for as long as it takes to load: what comes back sooner would
    have been cheaper to keep. In use, it has its time first, and the others' wait must be long.
    """
    if reservation.pinned or reservation.state != "ready":
        return None
    bootstrapped = reservation.loaded_at + min(
        rules.min_residency, rules.residency_factor * reservation.load_seconds
    )
    if reservation.idle:
        return min(bootstrapped, reservation.used_at + reservation.load_seconds)
    return max(bootstrapped, waiting_since + rules.patience)


def cost(reservation: Reservation, now: float) -> float:
    """What it would cost to be without it: its load time, the less the longer nobody used it."""
    if reservation.idle:
        return reservation.load_seconds / (1.0 + max(0.0, now - reservation.used_at))
    return _BUSY + reservation.load_seconds * (1 + reservation.in_flight + reservation.waiting)


def choose(
    reservations: Iterable[Reservation], device: str, missing: int, now: float
) -> Choice | None:
    """The cheapest of these that together free ``missing`` bytes of a device; None: not enough.

    Greedy by cost per byte, then whatever turns out not to be needed stays, the dearest first.
    """
    ranked = sorted(reservations, key=lambda h: (cost(h, now) / max(1, h.devices[device]), h.id))
    chosen: list[Reservation] = []
    freed = 0
    for reservation in ranked:
        if freed >= missing:
            break
        chosen.append(reservation)
        freed += reservation.devices[device]
    if freed < missing:
        return None
    for reservation in sorted(chosen, key=lambda h: -cost(h, now)):
        if freed - reservation.devices[device] >= missing:
            chosen.remove(reservation)
            freed -= reservation.devices[device]
    return Choice(chosen, sum(cost(reservation, now) for reservation in chosen))
