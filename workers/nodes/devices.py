"""Shows the devices of all nodes as one list, by ids such as ``node2:0`` and ``node2:cpu``."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import msgspec

from workers.devices import Condition, Device, Devices, DeviceUsage, Report
from workers.devices.device import NOTHING_ELSEWHERE, Elsewhere, id_on, id_there, node_of
from workers.nodes.messages import Holding, Holdings, NodeFacts
from workers.nodes.node import Node


class Nodes(Protocol):
    """Provides the nodes: implemented by the cluster."""

    @property
    def nodes(self) -> Iterable[Node]: ...
    @property
    def trouble(self) -> str | None: ...


class ClusterDevices(Devices):
    """Answers for the devices of many machines what is otherwise asked of one. A node that is lost
    keeps its devices in the list for a while, as ones that may come back."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        super().__init__()

    def of(self, node: Node) -> list[Device]:
        """List the devices of a node as they are shown here."""
        if node.facts is None:
            return []
        here = Condition("doubtful" if node.state == "lost" else "lost", node.reason)
        return [
            replace(
                device,
                id=id_on(node.name, device.id),
                node=node.name,
                pin=device.pin or device.id,
                condition=device.condition
                if node.state == "well"
                else device.condition.worse(here),
            )
            for device in node.facts.devices
        ]

    @property
    def note(self) -> str | None:
        return None

    @property
    def missing(self) -> str | None:
        return self._nodes.trouble

    def unknown_limits(self) -> Sequence[str]:
        return ()

    def pressure(self) -> str | None:
        told = ((node.name, facts.pressure) for node, facts in self._well())
        found = [f"{name}: {pressure}" for name, pressure in told if pressure]
        return " ".join(found) or None

    def problems(self) -> Mapping[str, str]:
        found = {each.id: each.condition.reason for each in self.list() if each.condition.reason}
        for node, facts in self._well():
            if "card" in facts.problems:
                found[id_on(node.name, "card")] = facts.problems["card"]
        for node in self._nodes.nodes:
            if node.facts is None and node.reason is not None:  # it has no device that would tell
                found[node.name] = node.reason
        return found | ({"card": self.missing} if self.missing else {})

    def read(self, pids: Iterable[int] = (), *, idle: bool = False) -> dict[str, DeviceUsage]:
        """Return the last readings of the nodes; their agents read each second."""
        del pids, idle
        return {
            id_on(node.name, device): usage
            for node, facts in self._well()
            for device, usage in facts.readings.items()
            if any(device == each.id for each in facts.devices)
        }

    def take_reports(self) -> Sequence[Report]:
        found: list[Report] = []
        for node in self._nodes.nodes:
            while node.reports:
                report = node.reports.popleft()
                found.append(Report(id_on(node.name, report.device), report.number))
        return found

    def ask_torch(self) -> bool:
        return False

    def elsewhere(self, device: str) -> Elsewhere:
        """Return what other gateways have of a device of a node, as the node has told last."""
        for node, facts in self._well():
            if node.name == node_of(device):
                return facts.elsewhere.get(id_there(device), NOTHING_ELSEWHERE)
        return NOTHING_ELSEWHERE

    def copied(self, device: str) -> frozenset[str]:
        """Return the models whose files the node of a device has copies of."""
        name = node_of(device)
        return next((each.copied for each in self._nodes.nodes if each.name == name), frozenset())

    def copy_room(self, device: str) -> int | None:
        """Return the bytes of copies that the node of a device has room for; None if it does not
        tell, or takes none."""
        name = node_of(device)
        return next((each.store.room for each in self._nodes.nodes if each.name == name), None)

    def tell(
        self, workers: Iterable[Holding], wishes: Mapping[str, int], others: Mapping[str, int]
    ) -> None:
        """Tell each node what this gateway holds there and what it wishes others to free, both by
        devices as they are called here.

        ``others``: what others had of the devices as the wishes were made.
        """
        there: dict[str, list[Holding]] = {}
        for each in workers:
            there.setdefault(node_of(next(iter(each.devices), "")), []).append(each)
        for node, _ in self._well():
            wished, had = (
                _by_id_there(
                    {each: size for each, size in sizes.items() if node_of(each) == node.name}
                )
                for sizes in (wishes, others)
            )
            held = tuple(map(_there, there.get(node.name, ())))
            node.tell(Holdings(workers=held, wishes=wished, others=had))

    def refresh(self) -> None:
        """Take over new facts of nodes, and which of them are lost."""
        self._rebuild()

    def _unmarked(self) -> Iterable[Device]:
        """List accelerators of all nodes first, processors last."""
        found = [device for node in self._nodes.nodes for device in self.of(node)]
        return sorted(found, key=lambda device: device.kind == "cpu")

    def _well(self) -> list[tuple[Node, NodeFacts]]:
        return [
            (node, node.facts)
            for node in self._nodes.nodes
            if node.state == "well" and node.facts is not None
        ]


def _there(holding: Holding) -> Holding:
    """Return a holding with the ids that its devices have on their node."""
    devices, held = _by_id_there(holding.devices), _by_id_there(holding.held)
    return msgspec.structs.replace(holding, devices=devices, held=held)


def _by_id_there(sizes: Mapping[str, int]) -> dict[str, int]:
    return {id_there(device): size for device, size in sizes.items()}
