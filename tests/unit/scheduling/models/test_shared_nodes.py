"""Evictions for other gateways, and loads that a node refuses memory or disk for."""

from bitinglip.scheduling.models.shared_nodes import SharedNodes
from bitinglip.scheduling.models.use import MemoryUse
from bitinglip.scheduling.placement.plan import Plan
from workers.devices import Device, Devices, DeviceUsage
from workers.devices.device import Elsewhere

GB = 1_000_000_000


def test_refusals_in_a_row_fail_a_load_after_a_minute_and_others_do_not() -> None:
    now = [0.0]
    shared = SharedNodes(Devices(), lambda: now[0])
    for second in range(61):
        now[0] = float(second)
        assert not shared.refused("m", ["n1:0"])
        assert shared.refused_until("n1:0") == second + 1
    now[0] = 62.0
    assert not shared.refused("other", ["n1:0"])
    assert shared.refused("m", ["n1:0"])
    now[0] = 80.0
    assert not shared.refused("m", ["n1:0"]), "there was none for a while"


def test_disk_that_was_full_is_avoided_for_that_model_for_five_minutes() -> None:
    now = [100.0]
    shared = SharedNodes(Devices(), lambda: now[0])
    assert shared.note_full("m", ["n1:0", "n1:1"], since=99.0)
    assert shared.note_full("m", ["n1:0"], since=99.0), "another load of it ran at the same time"
    assert [shared.full_for(each) for each in ("n1:cpu", "n2:0", "0")] == [{"m"}, set(), set()]
    now[0] = 200.0
    assert not shared.note_full("m", ["n1:0"], since=150.0), "it was tried there in spite of it"
    now[0] = 499.0
    assert shared.full_for("n1:0") == {"m"}
    now[0] = 500.0
    assert shared.full_for("n1:0") == {"m"}, "its load still looks for another disk"
    shared.load_ended("m")
    assert not shared.full_for("n1:0")
    assert shared.note_full("m", ["n1:0"], since=450.0)


def test_models_are_given_up_for_others_once_in_ten_seconds() -> None:
    now = [0.0]
    shared = SharedNodes(Devices(), lambda: now[0])
    assert shared.gives()
    shared.planned(Plan(gives=True))
    assert not shared.gives()
    now[0] = 9.0
    shared.planned(Plan())
    assert not shared.gives()
    now[0] = 10.0
    assert shared.gives()


def test_memory_of_another_gateway_s_ended_model_is_no_other_program_s_until_it_is_back() -> None:
    now = [0.0]
    use = MemoryUse(lambda: now[0])
    card = Device("n1:0", "card", "cuda", 8 * GB, 8 * GB, node="n1")

    def others(used: int, held: int) -> int:
        reading = {card.id: DeviceUsage(used * GB, {})}
        use.update(reading, [], {}, [card], lambda _: Elsewhere(reserved=held * GB, held=held * GB))
        return use.other_bytes(card.id) // GB

    assert others(used=6, held=5) == 1
    assert others(used=6, held=0) == 1, "the driver has not taken it down yet"
    assert others(used=1, held=0) == 1
    now[0] += 10
    assert others(used=4, held=0) == 4, "another program's"
