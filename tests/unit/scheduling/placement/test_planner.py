"""Plans stay within memory, evict no model without need, and forget no waiting one."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitinglip.scheduling.placement.eviction import EvictionRules
from bitinglip.scheduling.placement.ledger import DeviceCapacity, Ledger, Reservation
from bitinglip.scheduling.placement.planner import Demand, Load, Plan, Refuse, plan

RULES = EvictionRules(min_residency=20, residency_factor=4, patience=5)
NOW = 1000.0


def card(name: str = "0", memory: int = 24, **facts: Any) -> DeviceCapacity:
    return DeviceCapacity(name, "cuda", memory, **facts)


def held(model: str, size: int = 10, device: str = "0", **facts: Any) -> Reservation:
    """Return a model that was loaded long ago and has been unused for long, unless a test says
    otherwise."""
    usual = {"state": "ready", "loaded_at": 0.0, "used_at": 0.0, "load_seconds": 2.0}
    return Reservation(f"{model}/0", model, {device: size}, **{**usual, **facts})


def wanted(model: str = "new", size: int = 10, **facts: Any) -> Demand:
    return Demand(model, 0, {"cuda": size}, **{"since": NOW, **facts})


def planned(rooms: list[DeviceCapacity], reservations: list[Reservation], *demands: Demand) -> Plan:
    return plan(Ledger(rooms, reservations), demands, NOW, RULES)


def evicted(found: Plan) -> list[str]:
    return [each.id for each in found.evictions]


def test_free_memory_is_taken_first_and_where_least_is_left_over() -> None:
    rooms = [card("0", 24), card("1", 12), card("2", 9)]
    found = planned(rooms, [held("old")], wanted())
    assert found.loads == [Load("new", 0, {"1": 10})]
    assert not found.evictions


def test_card_that_drives_a_screen_comes_after_one_that_does_not() -> None:
    rooms = [card("0", display=True), card("1", memory=40)]
    assert planned(rooms, [], wanted()).loads == [Load("new", 0, {"1": 10})]
    full = [held("a", 35, device="1", pinned=True)]
    assert planned(rooms, full, wanted()).loads == [Load("new", 0, {"0": 10})]  # there is room


def test_replicas_are_placed_on_different_devices() -> None:
    demands = [wanted(), replace(wanted(), index=1, urgent=False)]
    found = planned([card("0"), card("1")], [], *demands)
    assert [load.devices for load in found.loads] == [{"0": 10}, {"1": 10}]


def test_eviction_takes_the_cheapest_unused_model_first() -> None:
    reservations = [
        held("slow", used_at=0.0, load_seconds=60),
        held("quick", used_at=0.0, load_seconds=2),
    ]
    found = planned([card()], reservations, wanted())
    assert evicted(found) == ["quick/0"]
    assert not found.loads  # not before the memory is free


def test_eviction_spares_a_model_used_a_moment_ago_if_another_will_do() -> None:
    reservations = [held("recent", used_at=NOW - 5), held("stale", used_at=NOW - 500)]
    assert evicted(planned([card()], reservations, wanted())) == ["stale/0"]


def test_eviction_takes_only_as_many_as_needed() -> None:
    reservations = [held("s1", 2), held("s2", 2), held("large", 16)]
    assert evicted(planned([card(memory=20)], reservations, wanted(size=12))) == ["large/0"]


@pytest.mark.parametrize(
    "why",
    [
        {"pinned": True},
        {"state": "loading"},
        {"in_flight": 1, "loaded_at": NOW - 3},  # in use, and has not had its time
        {"in_flight": 1},  # no request has waited for long
        {"waiting": 3},
        {"loaded_at": NOW - 1, "used_at": NOW - 1},  # idle for less than it takes to load
    ],
)
def test_eviction_spares_models_with_a_right_to_stay(why: dict[str, Any]) -> None:
    reservations = [held("a", 20, **why)]
    found = planned([card()], reservations, wanted())
    assert not found.evictions
    assert not found.loads
    if not {"pinned", "state"} & set(why):
        assert found.replan_at is not None
        assert found.replan_at > NOW


def test_drain_of_a_model_in_use_follows_its_residency_and_a_long_wait() -> None:
    busy = held("busy", 20, in_flight=3, waiting=9, loaded_at=NOW - 8)
    assert evicted(planned([card()], [busy], wanted(since=NOW - 6))) == ["busy/0"]


def test_eviction_under_way_is_waited_for() -> None:
    leaving = held("leaving", 20, state="draining", in_flight=1)
    found = planned([card()], [leaving, held("kept", 4)], wanted())
    assert not found.evictions
    assert found.waiting == [Load("new", 0, {"0": 10})]


def test_placement_lets_small_models_overtake_no_large_one() -> None:
    """Its room is being made; what is free of it meanwhile is not given away."""
    reservations = [held("leaving", 14, state="draining", in_flight=1)]
    found = planned([card()], reservations, wanted(size=22), wanted("small", 5, since=NOW))
    assert not found.loads


def test_higher_levels_and_longer_waits_come_first() -> None:
    demands = [wanted("b", 24, since=NOW - 1), wanted("a", 24, since=NOW - 9)]
    assert [load.model for load in planned([card()], [], *demands).loads] == ["a"]
    demands.append(wanted("c", 24, since=NOW, level=2))
    assert [load.model for load in planned([card()], [], *demands).loads] == ["c"]


def test_eviction_follows_only_from_waiting_requests() -> None:
    found = planned([card()], [held("old", 20)], wanted(urgent=False))
    assert found == Plan()


def test_placement_refuses_what_never_fits_and_retries_what_others_block() -> None:
    (refusal,) = planned([card()], [], wanted(size=25)).refusals
    assert refusal.forever
    (refusal,) = planned([card()], [held("p", 20, pinned=True)], wanted()).refusals
    assert not refusal.forever
    (refusal,) = planned([card(other_bytes=20)], [], wanted()).refusals
    assert not refusal.forever


def test_headroom_and_other_programs_are_respected() -> None:
    assert planned([card(headroom=1, other_bytes=14)], [], wanted()).refusals
    assert planned([card(headroom=1, other_bytes=13)], [], wanted()).loads
    limited = DeviceCapacity("0", "cuda", memory=10, physical=20, headroom=4, other_bytes=6)
    assert planned([limited], [], wanted(size=10)).loads  # nor does what stays free count in it
    assert planned([replace(limited, other_bytes=7)], [], wanted(size=10)).refusals
    room = DeviceCapacity("cpu", "cuda", memory=20, physical=100, other_bytes=70)
    assert planned([room], [], wanted(size=20)).loads  # what others have lies beside our budget


def test_unused_models_give_way_to_other_programs() -> None:
    found = planned([card(other_bytes=10)], [held("a"), held("b", in_flight=1)])
    assert evicted(found) == ["a/0"]


def test_eviction_for_another_program_follows_a_lasting_shortage() -> None:
    """A demand that comes and goes each second evicts no model."""
    taken = card(other_bytes=20, short_since=NOW - 1)
    found = planned([taken], [held("a", 10)])
    assert not found.evictions
    assert found.replan_at == NOW + 2
    assert evicted(planned([replace(taken, short_since=NOW - 3)], [held("a", 10)])) == ["a/0"]


def test_keep_alive_unloads_unused_models() -> None:
    brief = held("brief", used_at=NOW - 10, keep_alive=10.0)
    later = held("later", used_at=NOW - 10, keep_alive=15.0)
    found = planned([card()], [brief, later])
    assert evicted(found) == ["brief/0"]
    assert found.replan_at == NOW + 5


def test_split_takes_several_devices() -> None:
    rooms = [card("0"), card("1"), card("2", 12)]
    found = planned(rooms, [], wanted(size=40, spread=3))
    assert found.loads == [Load("new", 0, {"0": 20, "1": 20})]
    found = planned(rooms, [], wanted(size=50, spread=3))
    assert found.loads == [Load("new", 0, {"0": 19, "1": 19, "2": 12})], "12 is all that one has"
    (refusal,) = planned(rooms, [], wanted(size=61, spread=3)).refusals
    assert refusal.forever
    pinned = [held("p", 10, pinned=True)]
    (refusal,) = planned(rooms, pinned, wanted(size=40, spread=2)).refusals
    assert not refusal.forever
    found = planned(rooms, [held("a"), held("b", device="1")], wanted(size=40, spread=2))
    assert sorted(evicted(found)) == ["a/0", "b/0"]


ages = st.floats(0, 100).map(lambda age: NOW - age)
holdings_ = st.lists(
    st.builds(
        held,
        st.sampled_from("abcdef"),
        st.integers(1, 20),
        st.sampled_from("01"),
        state=st.sampled_from(["ready", "ready", "loading", "draining"]),
        in_flight=st.integers(0, 1),
        waiting=st.integers(0, 1),
        pinned=st.booleans(),
        loaded_at=ages,
        used_at=ages,
        load_seconds=st.floats(0.5, 20),
    ),
    max_size=5,
    unique_by=lambda each: each.id,
)
demands_ = st.lists(
    st.builds(
        wanted,
        st.sampled_from("uvwxyz"),
        st.integers(1, 30),
        since=ages,
        level=st.integers(0, 2),
        urgent=st.booleans(),
        spread=st.integers(1, 2),
    ),
    max_size=4,
    unique_by=lambda each: each.model,
)
rooms_ = st.tuples(
    st.integers(10, 40).map(lambda memory: card("0", memory)),
    st.tuples(st.integers(10, 40), st.integers(0, 8)).map(
        lambda pair: card("1", pair[0], other_bytes=pair[1])
    ),
)


@settings(max_examples=400)
@given(rooms_, holdings_, demands_)
def test_placement_plans_hold_their_invariants(
    rooms: tuple[DeviceCapacity, ...], reservations: list[Reservation], demands: list[Demand]
) -> None:
    before = Ledger(rooms, reservations)
    found = plan(Ledger(rooms, reservations), demands, NOW, RULES)
    for room in rooms:
        loaded = sum(load.devices.get(room.id, 0) for load in found.loads)
        assert loaded <= max(0, before.free(room.id))
    by_id = {each.id: each for each in reservations}
    for eviction in found.evictions:
        gone = by_id[eviction.id]
        assert gone.state == "ready"
        assert not gone.pinned
    assert len(set(evicted(found))) == len(found.evictions)
    loads = {load.model for load in found.loads}
    refused = {each.model for each in found.refusals}
    for demand in demands:
        least = sum(demand.needs.values())
        if demand.model in refused:
            assert demand.urgent
        forever = {each.model for each in found.refusals if each.forever}
        if demand.model in forever:
            assert all(least > room.largest for room in rooms)
        waits = demand.urgent and demand.model not in loads | refused
        if waits and not found.evictions and not any(each.leaving for each in reservations):
            # Nothing changes by itself: then a time is named, or a model loads or is in use.
            busy = any(each.in_flight or each.state == "loading" for each in reservations)
            assert found.replan_at is not None or found.loads or busy


def test_device_that_is_not_well_gets_nothing_new() -> None:
    found = planned([card("0", 12, reason="lost"), card("1")], [], wanted())
    assert [load.devices for load in found.loads] == [{"1": 10}]
    found = planned([card("0", reason="lost")], [], wanted())
    assert (found.loads, found.refusals) == ([], [Refuse("new", forever=False)])
    parts = [card(name, 6, reason=why) for name, why in (("0", None), ("1", "lost"), ("2", None))]
    found = planned(parts, [], wanted(spread=3))
    assert [load.devices for load in found.loads] == [{"0": 5, "2": 5}]


def test_device_that_is_not_well_keeps_its_models() -> None:
    """They could not be loaded there again."""
    device = card("0", other_bytes=20, reason="The driver was updated.")
    resident = held("old", keep_alive=10.0)
    assert not planned([device], [resident], wanted()).evictions
    assert evicted(planned([replace(device, reason=None)], [resident])) == ["old/0"]


# ---- RAM beside a card -----------------------------------------------------------------------

SMALL_HOST = DeviceCapacity("cpu", "cpu", 6, physical=8)


def test_ram_of_a_load_is_booked_beside_its_card() -> None:
    found = planned([card(memory=80), SMALL_HOST], [], wanted(size=20, ram=5))
    assert found.loads == [Load("new", 0, {"0": 20}, ram=5)]


def test_ram_that_the_machine_does_not_have_refuses_the_load_for_good() -> None:
    found = planned([card(memory=80), SMALL_HOST], [], wanted(size=20, ram=20))
    assert found.refusals == [Refuse("new", forever=True)]


def test_ram_of_other_programs_refuses_the_load_for_now() -> None:
    host = replace(SMALL_HOST, other_bytes=6)
    found = planned([card(memory=80), host], [], wanted(size=20, ram=5))
    assert found.refusals == [Refuse("new", forever=False)]


def test_ram_lets_one_of_two_loads_begin_and_the_other_follow_it() -> None:
    rooms = [card(memory=80), SMALL_HOST]
    first = wanted("a", 20, ram=5)
    second = wanted("b", 20, ram=5, since=NOW + 1)
    found = planned(rooms, [], first, second)
    assert [load.model for load in found.loads] == ["a"]
    assert not found.refusals
    loading = held("a", 20, state="loading", ram=5)
    found = planned(rooms, [loading], second)
    assert not found.loads
    assert not found.refusals
    assert [load.model for load in planned(rooms, [held("a", 20)], second).loads] == ["b"]


def test_ram_of_offloaded_weights_stays_taken() -> None:
    rooms = [card(memory=80), SMALL_HOST]
    offloaded = held("a", 20, ram=5, lasting_ram=5, in_flight=1)
    found = planned(rooms, [offloaded], wanted(size=20, ram=5))
    assert not found.loads
    assert not found.refusals


def test_eviction_frees_ram_for_a_load_onto_a_card() -> None:
    rooms = [card(memory=80), SMALL_HOST]
    on_processor = held("a", 5, "cpu")
    found = planned(rooms, [on_processor, held("b", 20)], wanted(size=20, ram=5))
    assert evicted(found) == ["a/0"]
    assert [load.model for load in found.waiting] == ["new"]
    assert not found.loads


def test_ram_of_loads_leaves_less_to_models_on_the_processor() -> None:
    ledger = Ledger([SMALL_HOST], [held("a", 20, ram=5, state="loading")])
    assert ledger.free("cpu") == 3
    assert ledger.ram_coming() == 5
    ledger.take({"cpu": 2})
    assert ledger.ram_free() == 1


def test_ram_is_not_planned_where_the_processor_is_not_known() -> None:
    assert planned([card(memory=80)], [], wanted(size=20, ram=500)).loads


def test_device_in_exclusive_mode_takes_one_worker_at_a_time() -> None:
    device = card(exclusive=True)
    assert [each.devices for each in planned([device], [], wanted()).loads] == [{"0": 10}]
    both = planned([device], [], wanted("a"), wanted("b"))
    assert [each.model for each in both.loads] == ["a"]
    found = planned([device], [held("old", 5)], wanted())
    assert (found.loads, evicted(found)) == ([], ["old/0"])


def test_memory_that_card_and_processor_share_is_one_budget() -> None:
    machine = [card(memory=30, shares="cpu"), DeviceCapacity("cpu", "cpu", 24)]
    on_cpu = Demand("on_cpu", 0, {"cpu": 20}, since=NOW)
    found = planned(machine, [], wanted(size=20), on_cpu)
    assert len(found.loads) == 1
    found = planned(machine, [held("old", 20, "cpu")], wanted(size=20))
    assert (found.loads, evicted(found)) == ([], ["old/0"])
    assert [each.devices for each in found.waiting] == [{"0": 20}]
    pinned = planned(machine, [held("old", 20, "cpu", pinned=True)], wanted(size=20))
    assert pinned.refusals == [Refuse("new", forever=False)]


def test_device_in_doubt_is_waited_for_a_while() -> None:
    doubtful = card(reason="It is probed.", doubtful=True)
    found = planned([doubtful], [], wanted())
    assert (found.loads, found.refusals, found.replan_at) == ([], [], NOW + RULES.patience)
    found = planned([doubtful], [], wanted(since=NOW - RULES.patience))
    assert found.refusals == [Refuse("new", forever=False)]
    assert planned([doubtful], [], wanted(size=30)).refusals  # it would not do
    assert planned([doubtful, card("1")], [], wanted()).loads
