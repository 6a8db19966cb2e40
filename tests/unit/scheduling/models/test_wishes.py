"""Wishes among several gateways: their plans and their agents' ledgers in any order of steps."""

import random
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bitinglip.scheduling.models.shared_nodes import SharedNodes
from bitinglip.scheduling.placement.eviction import EvictionRules
from bitinglip.scheduling.placement.ledger import DeviceCapacity, Ledger, Reservation
from bitinglip.scheduling.placement.planner import Demand, plan
from workers.devices import Devices
from workers.nodes.devices import ClusterDevices
from workers.nodes.folder import AgentFolder
from workers.nodes.granting import Granting
from workers.nodes.messages import PROTOCOL, AgentConfig, Holdings, NodeFacts, OpenWorker
from workers.nodes.node import Node

GB = 1_000_000_000
CARD = "n:fake0"
RULES = EvictionRules(min_residency=20, residency_factor=4, patience=5)


class DirectNode(Node):
    """Keeps what a gateway tells until its agent takes it: a connection that may be slow."""

    sent: Holdings | None = None

    def tell(self, holdings: Holdings) -> None:
        self.sent = holdings


class Gateway:
    """Runs one gateway's plans and its agent on the node, each step when it is told to."""

    def __init__(
        self, parent: Path, name: str, sizes: list[int], total: int, clock: Callable[[], float]
    ) -> None:
        self.name, self._clock, self._total = name, clock, total
        self.folder = AgentFolder(parent)
        config = AgentConfig(folder=str(parent), models=(), node="n", fake=(("card", total),))
        self._devices = Devices.find(config.fake, None, {})
        self._granting = Granting(config, self._devices, self.folder, clock)
        self._node = DirectNode("n", "a secret", lambda: None, name)
        self._node.state, self._node.facts = "well", self._facts()
        self._heard: NodeFacts | None = None
        self._shared = SharedNodes(ClusterDevices(self), clock)
        self.held: dict[str, Reservation] = {}
        self.needs = 0
        self.given: list[int] = []  #: the bytes of models that were evicted for others
        self._serials: dict[str, int] = {}
        for number, size in enumerate(sizes):
            idle_since = clock() - 100 - random.Random(f"{name}{number}").random() * 50
            each = Reservation(f"{name}{number}/0", f"{name}{number}", {CARD: size}, "ready")
            self._load(replace(each, used_at=idle_since))
        self._tell()

    # ---- for the cluster's devices -------------------------------------------------------------

    trouble = None

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (self._node,)

    # ---- steps ---------------------------------------------------------------------------------

    def look(self) -> None:
        """Let the agent look at the ledger, and say what it sees."""
        self._granting.look({})
        self._heard = self._facts()

    def hear(self) -> None:
        if self._heard is not None:
            self._node.facts = self._heard

    def plan(self) -> None:
        """Tell what is held, then plan, as a gateway does each second."""
        self._tell()
        there = self._shared.elsewhere(CARD)
        room = DeviceCapacity(
            CARD,
            "fake",
            self._total,
            node="n",
            elsewhere=there if self._shared.gives() else replace(there, leave=()),
            refused_until=self._shared.refused_until(CARD),
        )
        now = self._clock()
        asked = [Demand("wanted", 0, {"fake": self.needs}, since=now - 1)] if self.needs else []
        found = plan(Ledger([room], list(self.held.values())), asked, now, RULES)
        self._shared.planned(found)
        for each in found.evictions:
            self.given.append(self.held[each.id].devices[CARD])
            self.held[each.id] = replace(self.held[each.id], state="stopping")
        for load in found.loads:
            if self._load(Reservation("wanted/0", "wanted", load.devices, "ready", in_flight=1)):
                self.needs = 0
            else:
                self._shared.refused("wanted", load.devices)

    def take(self) -> None:
        """Let the agent take what it was told last."""
        if self._node.sent is not None:
            self._granting._take(self.name, self._node.sent)

    def end(self) -> None:
        """Let the processes end that are ending."""
        for name in [each.id for each in self.held.values() if each.state == "stopping"]:
            del self.held[name]
            self._granting._ledger.release(self._serials[name])

    def _tell(self) -> None:
        self._shared.tell(list(self.held.values()), lambda _: {}, RULES)

    def _load(self, reservation: Reservation) -> bool:
        serial = len(self._serials)
        spec = OpenWorker(
            protocol=PROTOCOL,
            gateway=self.name,
            node="n",
            name=reservation.id,
            engine="fake",
            visible_devices="",
            reserves={"fake0": reservation.devices[CARD]},
        )
        if self._granting._reserve(serial, spec, ()) is not None:
            return False
        self.held[reservation.id], self._serials[reservation.id] = reservation, serial
        return True

    def _facts(self) -> NodeFacts:
        there = self._granting.elsewhere(self.name)
        return NodeFacts(devices=self._devices.list(), readings={}, elsewhere=there)


STEPS = ("look", "hear", "plan", "take", "end")


@pytest.mark.parametrize("gateways", [3, 4, 5])
def test_wish_evicts_no_more_than_it_needs_and_a_part_of_one_model(gateways: int) -> None:
    for seed in range(8):
        chance = random.Random(seed)
        sizes = [chance.randint(1, 9) * GB for _ in range(chance.randint(4, 12))]
        with tempfile.TemporaryDirectory(prefix="wishes") as parent:
            _run(Path(parent), gateways, sizes, chance)


def _run(parent: Path, count: int, sizes: list[int], chance: random.Random) -> None:
    """Let one gateway wish for memory that the others' idle models have, all of the card."""
    now = [1000.0]
    gateways = [
        Gateway(parent, f"g{number}", sizes[number :: count - 1], sum(sizes), lambda: now[0])
        for number in range(count - 1)
    ]
    wisher = Gateway(parent, "wisher", [], sum(sizes), lambda: now[0])
    gateways.append(wisher)
    for each in gateways:
        each.take()
    needed = wisher.needs = chance.randint(1, sum(sizes))

    def evicted() -> int:
        return sum(sum(each.given) for each in gateways)

    for _ in range(150):  # in no order
        now[0] += 0.03
        getattr(chance.choice(gateways), chance.choice(STEPS))()
        assert evicted() < needed + max(sizes)
    for _ in range(60):
        now[0] += 1.0
        for each in gateways:
            for step in STEPS:
                getattr(each, step)()
    assert not wisher.needs, "and it is enough"
    assert evicted() < needed + max(sizes)
    for each in gateways:
        each.folder.remove()
