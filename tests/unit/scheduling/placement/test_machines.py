"""Nodes in one plan: no model spans two, and each has its own RAM."""

from bitinglip.scheduling.placement.eviction import EvictionRules
from bitinglip.scheduling.placement.ledger import DeviceCapacity, Ledger, Reservation
from bitinglip.scheduling.placement.planner import Demand, Plan, plan


def card(node: str, number: int, memory: int = 10) -> DeviceCapacity:
    return DeviceCapacity(id=f"{node}:{number}", kind="cuda", memory=memory, node=node)


def processor(node: str, ram: int) -> DeviceCapacity:
    return DeviceCapacity(id=f"{node}:cpu", kind="cpu", memory=ram, node=node)


def planned(
    devices: list[DeviceCapacity], *demands: Demand, held: tuple[Reservation, ...] = ()
) -> Plan:
    return plan(Ledger(devices, held), demands, 100.0, EvictionRules())


def wanted(need: int, *, spread: int = 4, ram: int = 0, name: str = "m") -> Demand:
    return Demand(name, 0, {"cuda": need}, since=0.0, spread=spread, ram=ram)


def test_split_stays_within_a_machine() -> None:
    apart = [card("a", 0), card("b", 0), card("c", 0)]
    (refusal,) = planned(apart, wanted(18)).refusals
    assert refusal.forever
    (load,) = planned([*apart, card("c", 1)], wanted(18)).loads
    assert set(load.devices) == {"c:0", "c:1"}


def test_split_waits_for_the_machine_that_can_hold_it() -> None:
    devices = [card("a", 0), card("a", 1, 4), card("b", 0), card("b", 1)]
    held = Reservation("x/0", "x", {"b:0": 8}, "ready", loaded_at=0.0, used_at=0.0)
    found = planned(devices, wanted(18), held=(held,))
    assert [each.id for each in found.evictions] == ["x/0"]
    assert set(found.waiting[0].devices) == {"b:0", "b:1"}


def test_ram_is_counted_by_machine() -> None:
    devices = [card("a", 0), card("b", 0), processor("a", 4), processor("b", 20)]
    (load,) = planned(devices, wanted(5, ram=8)).loads
    assert list(load.devices) == ["b:0"], "the other machine has not the RAM to load it"
    loading = Reservation("x/0", "x", {"b:0": 1}, "loading", ram=15)
    ledger = Ledger(devices, [loading])
    assert (ledger.ram_free("a"), ledger.ram_free("b")) == (4, 5)
    assert (ledger.ram_coming("a"), ledger.ram_coming("b")) == (0, 15)
    found = planned(devices, wanted(5, ram=8), held=(loading,))
    assert not found.loads
    assert [list(each.devices) for each in found.waiting] == [["b:0"]]
    (refusal,) = planned(devices, wanted(5, ram=30)).refusals
    assert refusal.forever
