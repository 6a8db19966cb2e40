"""Nodes that have the files of a model come first for it, and nothing else of a plan changes."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from bitinglip.scheduling.placement import dry_run
from bitinglip.scheduling.placement.dry_run import Snapshot
from bitinglip.scheduling.placement.eviction import EvictionRules
from bitinglip.scheduling.placement.ledger import DeviceCapacity, Ledger, Reservation
from bitinglip.scheduling.placement.planner import Demand, Plan, plan

NOW = 1000.0


def card(node: str, memory: int = 20, *files: str, number: int = 0) -> DeviceCapacity:
    return DeviceCapacity(f"{node}:{number}", "cuda", memory, node=node, files=frozenset(files))


def wanted(model: str = "m", size: int = 10, *, spread: int = 1, weights_of: str = "") -> Demand:
    return Demand(model, 0, {"cuda": size}, since=NOW, spread=spread, weights_of=weights_of)


def held(model: str, device: str, size: int, state: str = "ready") -> Reservation:
    return Reservation(f"{model}/0", model, {device: size}, state, load_seconds=2.0)


def planned(devices: list[DeviceCapacity], *demands: Demand, there: list[Reservation]) -> Plan:
    return plan(Ledger(devices, there), demands, NOW, EvictionRules())


def places(found: Plan) -> dict[str, list[str]]:
    return {load.model: sorted(load.devices) for load in found.loads}


def test_load_goes_where_its_files_are_though_more_room_is_left_over_there() -> None:
    devices = [card("a", 12), card("b", 20, "m")]
    assert places(planned(devices, wanted(), there=[])) == {"m": ["b:0"]}
    assert places(planned(devices, wanted("other"), there=[])) == {"other": ["a:0"]}
    adapter = wanted("tuned", weights_of="m")
    assert places(planned(devices, adapter, there=[])) == {"tuned": ["b:0"]}
    snapshot = Snapshot(devices, now=NOW)
    for model, weights_of in (("m", ""), ("tuned", "m")):
        found = dry_run.place(model, {"cuda": 10}, snapshot, weights_of=weights_of)
        assert found is not None
        assert found.devices == ("b:0",), "a fit tells the same"


def test_files_keep_no_replicas_together_and_no_model_from_a_node() -> None:
    devices = [card("a"), card("b", 30, "m")]
    two = [wanted(), replace(wanted(), index=1, urgent=False)]
    found = planned(devices, *two, there=[])
    assert sorted(each for load in found.loads for each in load.devices) == ["a:0", "b:0"]
    full = [held("old", "b:0", 25)]
    found = planned(devices, wanted(), there=full)
    assert (places(found), found.evictions) == ({"m": ["a:0"]}, [])
    doubtful = replace(devices[1], reason="It is probed.", doubtful=True)
    assert places(planned([devices[0], doubtful], wanted(), there=[])) == {"m": ["a:0"]}
    refused = replace(devices[1], refused_until=NOW + 1)
    assert places(planned([devices[0], refused], wanted(), there=[])) == {"m": ["a:0"]}


def test_files_cost_no_eviction_and_no_load_of_another_model() -> None:
    devices = [card("a", 12), card("b", 24, "m")]
    found = planned(devices, wanted(), wanted("next", 20), there=[])
    assert places(found) == {"m": ["a:0"], "next": ["b:0"]}
    found = planned(devices, wanted(), wanted("next", 20), there=[held("idle", "b:0", 2)])
    assert (places(found), found.evictions) == ({"m": ["a:0"], "next": ["b:0"]}, [])


def test_memory_that_comes_free_is_awaited_where_the_files_are() -> None:
    devices = [card("a", 12), card("b", 12, "m")]
    there = [held("x", "a:0", 12, "draining"), held("y", "b:0", 12, "draining")]
    found = planned(devices, wanted(), there=there)
    assert [list(each.devices) for each in found.waiting] == [["b:0"]]


def test_split_goes_to_the_machine_with_the_files() -> None:
    devices = [card("a"), card("a", number=1), card("b", 20, "m"), card("b", 20, "m", number=1)]
    found = planned(devices, wanted(size=30, spread=4), there=[])
    assert places(found) == {"m": ["b:0", "b:1"]}


models_ = st.sampled_from("mno")
rooms_ = st.lists(st.tuples(st.integers(1, 4), st.frozensets(models_)), min_size=1, max_size=4)
demands_ = st.lists(
    st.builds(wanted, models_, st.integers(1, 4), spread=st.just(1)),
    min_size=1,
    max_size=3,
    unique_by=lambda demand: demand.model,
)
there_ = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 2), st.booleans()), max_size=3)


@settings(max_examples=100, deadline=None)
@given(rooms_, demands_, there_)
def test_files_change_where_models_are_loaded_and_nothing_else(
    rooms: list[tuple[int, frozenset[str]]],
    demands: list[Demand],
    loaded: list[tuple[int, int, bool]],
) -> None:
    devices = [card(f"n{n}", size, *files) for n, (size, files) in enumerate(rooms)]
    there = [
        replace(held(f"x{n}", devices[at % len(devices)].id, size), pinned=pinned)
        for n, (at, size, pinned) in enumerate(loaded)
    ]
    found = planned(devices, *demands, there=there)
    plain = planned([replace(each, files=frozenset()) for each in devices], *demands, there=there)
    assert found.evictions == plain.evictions
    assert found.refusals == plain.refusals
    assert places(found).keys() == places(plain).keys()
    before, taken = Ledger(devices, there), {each.id: 0 for each in devices}
    for load in found.loads:
        for device, size in load.devices.items():
            taken[device] += size
    assert all(size <= max(0, before.free(device)) for device, size in taken.items())
