"""Chooses the loaded models that make room for another one, and says when they may. Pure."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from bitinglip.scheduling.placement.ledger import Reservation

_BUSY = 1000.0  #: makes evicting any model in use dearer than evicting any idle one


@dataclass(frozen=True, slots=True)
class EvictionRules:
    """Holds the operator's rules for how long models keep their memory."""

    min_residency: float = 20.0  #: seconds that a model in use stays loaded at most
    residency_factor: float = 4.0  #: ... or this many times its load time, if that is less
    patience: float = 5.0  #: seconds that requests wait before a model in use is evicted


@dataclass(frozen=True, slots=True)
class EvictionSet:
    """Holds models that together free enough memory on a device."""

    reservations: Collection[Reservation]
    cost: float


def may_leave_at(
    reservation: Reservation, waiting_since: float, rules: EvictionRules
) -> float | None:
    """Return when it may be evicted for a request that has waited since then; None: never.

    An idle model must have been idle for its load time: one that is needed again sooner would have
    been cheaper to keep. A model in use has its minimum residency first, and the wait must be long.
    """
    if reservation.pinned or reservation.state != "ready":
        return None
    resident_until = reservation.loaded_at + min(
        rules.min_residency, rules.residency_factor * reservation.load_seconds
    )
    if reservation.idle:
        return min(resident_until, reservation.used_at + reservation.load_seconds)
    return max(resident_until, waiting_since + rules.patience)


def may_give(reservation: Reservation, now: float, rules: EvictionRules) -> bool:
    """Return True if a model may be evicted for another gateway: as for a request that came now,
    and only an idle one."""
    at = may_leave_at(reservation, now, rules) if reservation.idle else None
    return at is not None and at <= now


def cost(reservation: Reservation, now: float) -> float:
    """Return the eviction cost: the load time, divided by the time since last use."""
    if reservation.idle:
        return reservation.load_seconds / (1.0 + max(0.0, now - reservation.used_at))
    return _BUSY + reservation.load_seconds * (1 + reservation.in_flight + reservation.waiting)


def choose(
    reservations: Iterable[Reservation], device: str, missing: int, now: float
) -> EvictionSet | None:
    """Choose the cheapest models that free ``missing`` bytes of a device; None if all are too few.

    It adds models by cost per byte, then drops those that are not needed, the dearest first.
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
    return EvictionSet(chosen, sum(cost(reservation, now) for reservation in chosen))
