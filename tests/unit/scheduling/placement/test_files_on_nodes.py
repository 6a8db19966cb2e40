"""Nodes that have the files of a model, or room for them, come first for it, and nothing else of a
plan changes; those whose disks have failed it come last."""

from dataclasses import replace
from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st

from bitinglip.scheduling.placement import dry_run
from bitinglip.scheduling.placement.dry_run import Snapshot
from bitinglip.scheduling.placement.eviction import EvictionRules
from bitinglip.scheduling.placement.ledger import DeviceCapacity, Ledger, Reservation
from bitinglip.scheduling.placement.planner import Demand, Plan, plan
from workers.devices.device import Elsewhere

NOW = 1000.0


def card(node: str, memory: int = 20, *files: str, number: int = 0) -> DeviceCapacity:
    return DeviceCapacity(f"{node}:{number}", "cuda", memory, node=node, files=frozenset(files))


def wanted(
    model: str = "m", size: int = 10, *, spread: int = 1, weights_of: str = "", files: int = 0
) -> Demand:
    return Demand(
        model,
        0,
        {"cuda": size},
        since=NOW,
        spread=spread,
        weights_of=weights_of,
        file_bytes=files,
    )


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


def test_load_goes_where_its_files_have_room_on_the_disk() -> None:
    small, roomy = replace(card("a", 12), copy_room=49), replace(card("b", 20), copy_room=50)
    assert places(planned([small, roomy], wanted(files=50), there=[])) == {"m": ["b:0"]}
    assert places(planned([small, roomy], wanted(files=49), there=[])) == {"m": ["a:0"]}
    untold = replace(roomy, copy_room=None)
    assert places(planned([small, untold], wanted(files=50), there=[])) == {"m": ["b:0"]}
    there = replace(small, files=frozenset("m"))
    assert places(planned([there, roomy], wanted(files=50), there=[])) == {"m": ["a:0"]}
    found = dry_run.place("m", {"cuda": 10}, Snapshot([small, roomy], now=NOW), file_bytes=50)
    assert found is not None
    assert found.devices == ("b:0",), "a fit tells the same"


def test_room_on_a_disk_costs_no_eviction_and_keeps_no_model_from_a_node() -> None:
    devices = [replace(card("a"), copy_room=0), replace(card("b"), copy_room=99)]
    idle = held("idle", "b:0", 20)
    found = planned(devices, wanted(files=50), there=[idle])
    assert (places(found), found.evictions) == ({"m": ["a:0"]}, [])


def test_disk_that_has_failed_a_model_is_avoided_while_another_could_take_it() -> None:
    full, other = replace(card("a"), full_for=frozenset("m")), card("b")
    assert places(planned([full, other], wanted(), there=[])) == {"m": ["b:0"]}
    assert places(planned([full, other], wanted("n", 20), there=[])) == {"n": ["a:0"]}
    idle = held("idle", "b:0", 20)
    found = planned([full, other], wanted(), there=[idle])
    assert [list(each.devices) for each in found.waiting] == [["b:0"]], "by an eviction there"
    theirs = replace(other, elsewhere=Elsewhere(reserved=20, idle=20))
    assert planned([full, theirs], wanted(), there=[]).wishes == {"b:0": 10}
    extra = replace(wanted(), urgent=False)
    assert planned([full, other], extra, there=[idle]) == planned([other], extra, there=[idle])


def test_disk_that_has_failed_a_model_is_tried_again_where_no_other_could_take_it() -> None:
    full, other = replace(card("a"), full_for=frozenset("m")), card("b")
    taken = [held("m", "a:0", 20), replace(held("kept", "b:0", 11), pinned=True)]
    for devices, there in (
        ([full], []),
        ([full, replace(other, memory=9)], []),
        ([full, replace(other, reason="It is lost.")], []),
        ([full, other], taken[1:]),
    ):
        assert places(planned(devices, wanted(), there=there)) == {"m": ["a:0"]}
    host = DeviceCapacity("b:cpu", "cpu", 5, node="b")
    much_ram = replace(wanted(), ram=6)
    assert places(planned([full, other, host], much_ram, there=[])) == {"m": ["a:0"]}


def test_planning_for_full_disks_takes_little_more_than_without_them() -> None:
    """Else the event loop stands still for it: there it is done, at each change."""
    names = [f"m{number}" for number in range(100)]
    cards = [card(f"n{number // 4}", number=number % 4) for number in range(16)]
    hosts = [DeviceCapacity(f"n{n}:cpu", "cpu", 500, physical=500, node=f"n{n}") for n in range(4)]
    plain = cards + hosts
    full = [
        replace(each, full_for=frozenset(names[int(each.node[1:]) :: 4]), copy_room=number % 2)
        for number, each in enumerate(plain)
    ]
    wants = [wanted(name, spread=4, files=1) for name in names[64:]]
    looks = {}
    for devices in (plain, full):
        never = Never()
        there = [
            replace(held(name, cards[n % 16].id, 4), pinned=cast("bool", never))
            for n, name in enumerate(names[:64])
        ]
        planned(devices, *wants, there=there)
        looks[devices is full] = never.looks
    assert looks[True] < 3 * looks[False]


class Never:
    """Stands for False, and counts who looks."""

    def __init__(self) -> None:
        self.looks = 0

    def __bool__(self) -> bool:
        self.looks += 1
        return False


def test_split_avoids_the_machine_whose_disk_has_failed_it() -> None:
    cards = [[card(node, number=number) for number in (0, 1)] for node in "ab"]
    full = [replace(each, full_for=frozenset("m")) for each in cards[0]]
    found = planned([*full, *cards[1]], wanted(size=30, spread=4), there=[])
    assert places(found) == {"m": ["b:0", "b:1"]}
    found = planned([*full, cards[1][0]], wanted(size=30, spread=4), there=[])
    assert places(found) == {"m": ["a:0", "a:1"]}


models_ = st.sampled_from("mno")
rooms_ = st.lists(
    st.tuples(st.integers(1, 4), st.frozensets(models_), st.none() | st.integers(0, 3)),
    min_size=1,
    max_size=4,
)
demands_ = st.lists(
    st.builds(wanted, models_, st.integers(1, 4), spread=st.just(1), files=st.integers(0, 3)),
    min_size=1,
    max_size=3,
    unique_by=lambda demand: demand.model,
)
there_ = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 2), st.booleans()), max_size=3)


@settings(max_examples=100, deadline=None)
@given(rooms_, demands_, there_)
def test_files_change_where_models_are_loaded_and_nothing_else(
    rooms: list[tuple[int, frozenset[str], int | None]],
    demands: list[Demand],
    loaded: list[tuple[int, int, bool]],
) -> None:
    devices = [
        replace(card(f"n{n}", size, *files), copy_room=room)
        for n, (size, files, room) in enumerate(rooms)
    ]
    there = [
        replace(held(f"x{n}", devices[at % len(devices)].id, size), pinned=pinned)
        for n, (at, size, pinned) in enumerate(loaded)
    ]
    found = planned(devices, *demands, there=there)
    untold = [replace(each, files=frozenset(), copy_room=None) for each in devices]
    plain = planned(untold, *demands, there=there)
    assert found.evictions == plain.evictions
    assert found.refusals == plain.refusals
    assert places(found).keys() == places(plain).keys()
    before, taken = Ledger(devices, there), {each.id: 0 for each in devices}
    for load in found.loads:
        for device, size in load.devices.items():
            taken[device] += size
    assert all(size <= max(0, before.free(device)) for device, size in taken.items())
