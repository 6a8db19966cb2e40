"""Plans beside the models of other gateways: their memory is taken, wished for, and given."""

from typing import Any

import pytest

from bitinglip.scheduling.placement.eviction import EvictionRules
from bitinglip.scheduling.placement.ledger import DeviceCapacity, Ledger, Reservation
from bitinglip.scheduling.placement.planner import Demand, Load, Plan, Refuse, plan
from workers.devices.device import Elsewhere

RULES = EvictionRules(min_residency=20, residency_factor=4, patience=5)
NOW = 1000.0


def card(name: str = "0", memory: int = 24, **theirs: Any) -> DeviceCapacity:
    return DeviceCapacity(name, "cuda", memory, elsewhere=Elsewhere(**theirs))


def held(model: str, size: int = 10, device: str = "0", **facts: Any) -> Reservation:
    """Return a model that is loaded long ago and has long been unused, unless facts differ."""
    usual = {"state": "ready", "loaded_at": 0.0, "used_at": 0.0, "load_seconds": 2.0}
    return Reservation(f"{model}/0", model, {device: size}, **{**usual, **facts})


def wanted(size: int = 10, **facts: Any) -> Demand:
    return Demand("new", 0, {"cuda": size}, **{"since": NOW, **facts})


def planned(room: DeviceCapacity, reservations: list[Reservation], *demands: Demand) -> Plan:
    return plan(Ledger([room], reservations), demands, NOW, RULES)


def evicted(found: Plan) -> list[str]:
    return [each.id for each in found.evictions]


def test_memory_of_other_gateways_is_not_planned_with() -> None:
    rooms = [card("0", reserved=20), card("1", memory=40)]
    found = plan(Ledger(rooms, []), [wanted()], NOW, RULES)
    assert found.loads == [Load("new", 0, {"1": 10})]
    exclusive = DeviceCapacity("0", "cuda", 24, exclusive=True, elsewhere=Elsewhere(reserved=1))
    assert not planned(exclusive, [], wanted(5)).loads, "a card that takes one process at a time"


def test_ram_of_other_gateways_is_not_planned_with() -> None:
    host = DeviceCapacity("cpu", "cpu", 24, physical=30, elsewhere=Elsewhere(ram=28))
    assert Ledger([host], []).ram_free() == 2
    assert Ledger([host], []).free("cpu") == 2


def test_wish_is_what_is_missing_after_ones_own_unused_models() -> None:
    alone = planned(card(reserved=20, idle=20), [], wanted())
    assert (alone.wishes, alone.refusals, alone.missing_bytes) == ({"0": 6}, [], 6)
    both = planned(card(reserved=10, idle=10), [held("mine")], wanted(20))
    assert both.wishes == {"0": 6}
    assert not evicted(both), "before the others have given way, it would be in vain"
    enough = planned(card(reserved=10, idle=10), [held("mine")], wanted(14))
    assert evicted(enough) == ["mine/0"], "one's own first"
    assert not enough.wishes


def test_wish_is_made_where_least_is_missing() -> None:
    rooms = [card("0", reserved=20, idle=20), card("1", reserved=16, idle=16)]
    assert plan(Ledger(rooms, []), [wanted()], NOW, RULES).wishes == {"1": 2}


def test_models_in_use_by_other_gateways_are_waited_for_without_a_wish() -> None:
    found = planned(card(reserved=20), [], wanted())
    assert (found.wishes, found.refusals) == ({}, [])
    assert found.replan_at is not None


@pytest.mark.parametrize("theirs", [{"pinned": 20}, {"pinned": 18, "idle": 2}])
def test_models_that_other_gateways_have_pinned_are_not_waited_for(theirs: dict[str, Any]) -> None:
    found = planned(card(reserved=20, **theirs), [], wanted())
    assert found.refusals == [Refuse("new", forever=False)]


def test_memory_of_other_gateways_is_waited_for_for_a_minute() -> None:
    found = planned(card(reserved=20, idle=20), [], wanted(since=NOW - 60))
    assert found.refusals == [Refuse("new", forever=False)]


def test_wish_of_others_evicts_the_models_that_are_named_and_none_in_use() -> None:
    models = [
        held("old", 4, used_at=10.0),
        held("older", 4, used_at=5.0),
        held("busy", 4, in_flight=1),
        held("asked", 4, waiting=1),
        held("kept", 4, pinned=True),
        held("young", 4, loaded_at=NOW - 1, used_at=NOW - 1),
    ]
    few = planned(card(leave=("old/0",)), models)
    assert (evicted(few), few.gives) == (["old/0"], True)
    named = tuple(each.id for each in models)
    assert evicted(planned(card(leave=named), models)) == ["old/0", "older/0"]
    none = planned(card(), models)
    assert (evicted(none), none.gives) == ([], False)


def test_wish_of_others_comes_after_ones_own_demand() -> None:
    models = [held("a", 12), held("b", 12)]
    found = planned(card(leave=("a/0", "b/0")), models, wanted(12))
    assert len(evicted(found)) == 2
    assert found.waiting, "what ours waits for is not what theirs gets"


def test_node_that_has_refused_memory_is_planned_with_again_a_moment_later() -> None:
    refusing = DeviceCapacity("0", "cuda", 24, refused_until=NOW + 1)
    found = planned(refusing, [held("idle", 10)], wanted())
    assert (found.loads, evicted(found), found.refusals) == ([], [], [])
    assert found.replan_at == NOW + 1
    other = plan(Ledger([refusing, card("1")], []), [wanted()], NOW, RULES)
    assert other.loads == [Load("new", 0, {"1": 10})]
    split = plan(Ledger([refusing, card("1")], []), [wanted(30, spread=2)], NOW, RULES)
    assert not split.loads
