"""Evicts idle models without a demand: unused ones, and those whose memory others want. Pure.

It keeps the books of a plan while it is made, for the planner, which answers demands.
"""

from collections.abc import Mapping

from bitinglip.scheduling.placement import eviction
from bitinglip.scheduling.placement.eviction import EvictionRules
from bitinglip.scheduling.placement.ledger import Ledger, Reservation
from bitinglip.scheduling.placement.plan import Demand, Evict, Load, Plan

#: Seconds for which memory must be missing before models are evicted for another program: use that
#: flaps, as a browser's does, would have them loaded and evicted in turn.
_SHORT_SECONDS = 3.0


class IdleEvictions:
    """Holds a plan while it is made, and evicts idle models that no demand of ours needs gone."""

    def __init__(self, ledger: Ledger, now: float, rules: EvictionRules) -> None:
        self.plan = Plan()
        self._ledger = ledger
        self._now = now
        self._rules = rules
        self._coming = {device.id: ledger.leaving(device.id) for device in ledger.devices}
        # What runs on a device that is not well could not be loaded there again.
        self._in_question = {device.id for device in ledger.devices if device.reason}
        self._evicted: set[str] = set()  #: reservations that this plan evicts

    # ---- evictions without a demand --------------------------------------------------------------

    def expire(self) -> None:
        """Evict models that have been idle for their keep-alive time."""
        for reservation in self._ledger.reservations:
            if reservation.keep_alive is None or reservation.pinned or not reservation.idle:
                continue
            if not self._in_question.isdisjoint(reservation.devices):
                continue
            ends = reservation.used_at + reservation.keep_alive
            if ends <= self._now:
                self._evict(reservation, f"not used for {reservation.keep_alive:g} s")
            else:
                self._replan_at(ends)

    def evict_for_external_use(self) -> None:
        """Evict idle models where another program has taken memory that was ours."""
        for device in self._ledger.devices:
            missing = -(self._ledger.free(device.id) + self._coming[device.id])
            if missing <= 0 or device.reason:
                continue
            if self._now < device.short_since + _SHORT_SECONDS:
                self._replan_at(device.short_since + _SHORT_SECONDS)
                continue
            idle = [h for h in self._candidates(device.id) if h.idle and not h.pinned]
            freed = 0
            for reservation in sorted(idle, key=lambda h: eviction.cost(h, self._now)):
                if freed < missing:
                    freed += reservation.devices[device.id]
                    self._evict(reservation, "another program took its memory")

    def give(self) -> None:
        """Evict the idle models that are to make room for other gateways."""
        for device in self._ledger.devices:
            for reservation in self._candidates(device.id):
                named = reservation.id in device.elsewhere.leave and not device.reason
                if named and eviction.may_give(reservation, self._now, self._rules):
                    self._evict(reservation, "room for a model of another gateway")
                    self.plan.gives = True

    # ---- the plan's own bookkeeping --------------------------------------------------------------

    def _load(self, demand: Demand, devices: Mapping[str, int]) -> None:
        self._ledger.take(devices, demand.ram, demand.lasting_ram)
        self.plan.loads.append(Load(demand.model, demand.index, devices, demand.ram))

    def _await(self, demand: Demand, devices: Mapping[str, int]) -> None:
        self._ledger.take(devices, demand.ram, demand.lasting_ram)
        self.plan.waiting.append(Load(demand.model, demand.index, devices, demand.ram))

    def _evict(self, reservation: Reservation, reason: str) -> None:
        if reservation.id in self._evicted:
            return
        self._evicted.add(reservation.id)
        for device, size in reservation.devices.items():
            self._coming[device] = self._coming.get(device, 0) + size
        self.plan.evictions.append(Evict(reservation.id, reason))

    def _candidates(self, device: str) -> list[Reservation]:
        return [h for h in self._ledger.on(device) if h.id not in self._evicted]

    def _replan_at(self, at: float) -> None:
        if self.plan.replan_at is None or at < self.plan.replan_at:
            self.plan.replan_at = at
