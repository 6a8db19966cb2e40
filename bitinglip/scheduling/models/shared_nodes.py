"""Shares the nodes of a cluster with other gateways: tells what is held and wished there."""

from collections.abc import Callable, Iterable, Mapping

from bitinglip.scheduling.placement.eviction import EvictionRules, may_give
from bitinglip.scheduling.placement.ledger import Reservation
from bitinglip.scheduling.placement.plan import Plan
from workers.devices import Devices
from workers.devices.device import NOTHING_ELSEWHERE, Elsewhere, node_of
from workers.nodes.devices import ClusterDevices
from workers.nodes.messages import Holding

_BETWEEN = 10.0  #: seconds between two evictions for other gateways
_REFUSED_SECONDS = 1.0  #: until a node that has refused memory is planned with again
_IN_A_ROW = 10.0  #: seconds between refusals at most
_PATIENCE = 60.0  #: seconds of refusals after which a load has failed
_FULL_SECONDS = 300.0  #: that a disk without room for a model's files is avoided for it


class SharedNodes:
    """Knows what other gateways have of the nodes, and which models' files lie there or have no
    room; nothing where there is no cluster."""

    def __init__(self, devices: Devices, clock: Callable[[], float]) -> None:
        self._cluster = devices if isinstance(devices, ClusterDevices) else None
        self._clock = clock
        self._wishes: Mapping[str, int] = {}
        self._others: Mapping[str, int] = {}  #: what others had of those devices then
        self._awaited: frozenset[str] = frozenset()  #: devices whose memory requests here wait for
        self._gave_at = float("-inf")
        self._refused: dict[str, float] = {}  #: by device: until when nothing is planned there
        self._refusals: dict[
            str, tuple[float, float]
        ] = {}  #: by model: the first in a row, the last
        self._full: dict[tuple[str, str], float] = {}  #: by node and model: when it was found
        self._seeking: set[str] = set()  #: models that go from one full disk to another

    def elsewhere(self, device: str) -> Elsewhere:
        """Return what other gateways have of a device."""
        return self._cluster.elsewhere(device) if self._cluster else NOTHING_ELSEWHERE

    def files(self, device: str) -> frozenset[str]:
        """Return the models whose files a device's node has; none where nodes share them."""
        return self._cluster.copied(device) if self._cluster else frozenset()

    def copy_room(self, device: str) -> int | None:
        """Return the bytes of copies that a device's node has room for; None if that is not
        known, or nodes share the files."""
        return self._cluster.copy_room(device) if self._cluster else None

    def full_for(self, device: str) -> frozenset[str]:
        """Return the models whose files had no room on the disk of a device's node a while ago, or
        since their load began to go from node to node."""
        there, now = node_of(device), self._clock()
        return frozenset(
            each[1]
            for each, at in self._full.items()
            if each[0] == there and self._lasts(each, at, now)
        )

    def _lasts(self, note: tuple[str, str], at: float, now: float) -> bool:
        # A load may take longer than a disk is avoided: it would have two of them in turn for ever.
        return at > now - _FULL_SECONDS or note[1] in self._seeking

    def note_full(self, model: str, devices: Iterable[str], since: float) -> bool:
        """Take note that the disk of a node has no room for a model's files.

        Returns True if that was not known at ``since``, as the load began.
        """
        now = self._clock()
        self._full = {each: at for each, at in self._full.items() if self._lasts(each, at, now)}
        keys = [(node_of(each), model) for each in devices]
        is_new = all(self._full.get(each, now) > since for each in keys)
        self._full |= dict.fromkeys(keys, now)
        self._seeking.add(model)
        return is_new

    def load_ended(self, model: str) -> None:
        """Take note that a model is loaded, or is not tried elsewhere."""
        self._seeking.discard(model)

    def refused(self, model: str, devices: Iterable[str]) -> bool:
        """Take note that a node has granted no memory there: others took it a moment ago.

        Returns True once that goes on for so long that something else is wrong.
        """
        now = self._clock()
        self._refused |= dict.fromkeys(devices, now + _REFUSED_SECONDS)
        since, last = self._refusals.get(model, (now, now))
        since = now if now > last + _IN_A_ROW else since
        self._refusals[model] = (since, now)
        return now > since + _PATIENCE

    def refused_until(self, device: str) -> float:
        """Return until when a device has no room, whatever was told of it before."""
        return self._refused.get(device, float("-inf"))

    def gives(self) -> bool:
        """Return True if models may be evicted for other gateways: not again and again."""
        return self._clock() >= self._gave_at + _BETWEEN

    def planned(self, plan: Plan) -> None:
        """Take over what a plan wishes others to free, and whether it evicts for them.

        It is called before the facts of the plan change.
        """
        self._wishes = plan.wishes
        self._others = {each: self.elsewhere(each).reserved for each in plan.wishes}
        self._awaited = frozenset(plan.wishes).union(*(each.devices for each in plan.waiting))
        if plan.gives:
            self._gave_at = self._clock()

    def tell(
        self,
        reservations: Iterable[Reservation],
        held: Callable[[str], Mapping[str, int]],
        rules: EvictionRules,
    ) -> None:
        """Tell the nodes what is held there and wished.

        ``held``: what a worker's process has by now, by device, as far as that is known.
        """
        if self._cluster is None:
            return
        now, gives = self._clock(), self.gives()
        self._cluster.tell(
            [
                Holding(
                    worker=each.id,
                    devices=dict(each.devices),
                    ram=each.ram,
                    held=dict(held(each.id)),
                    idle=_idle(each, now, rules) if gives else None,
                    pinned=each.pinned,
                    leaving=_is_free_soon(each) and self._awaited.isdisjoint(each.devices),
                )
                for each in reservations
            ],
            self._wishes,
            self._others,
        )


def _idle(reservation: Reservation, now: float, rules: EvictionRules) -> float | None:
    """Return for how many seconds a model has been idle that may be evicted; else None."""
    return max(0.0, now - reservation.used_at) if may_give(reservation, now, rules) else None


def _is_free_soon(reservation: Reservation) -> bool:
    """Return True for a model that is ending, and runs nothing that it would finish first."""
    return reservation.leaving and not reservation.in_flight
