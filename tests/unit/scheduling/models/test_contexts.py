"""The size of a CUDA context is learned from what the driver tells of idle workers."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bitinglip.scheduling.models.contexts import ContextSizes
from bitinglip.scheduling.models.facts import ResourceFacts
from bitinglip.scheduling.models.state import Replica
from bitinglip.scheduling.placement.estimate import estimate
from bitinglip.scheduling.placement.footprints import Footprints
from bitinglip.settings import Settings
from tests.support.nvml import StandInCard, StandInNvml
from tests.unit.scheduling.placement.test_ram import text
from workers.devices import Devices, DeviceUsage
from workers.devices.cards import Cards
from workers.engines import torch_env
from workers.engines.defaults import CONTEXT_BYTES
from workers.protocol import Heartbeat, Load, Ready

MIB = 1024 * 1024
GIB = 1024 * MIB


def worker(own: int, *, in_flight: int = 0, context: int | None = None) -> Any:
    """Return a worker that believes to hold so much: torch's memory and a context of the size it
    knows."""
    return SimpleNamespace(
        pid=7,
        spec=Load(model="m", engine="text", path="", device="cuda", context_bytes=context),
        ready=Ready(slots=1, memory_bytes=own),
        heartbeat=Heartbeat(steps=1, in_flight=in_flight, memory_bytes=own),
    )


def seen(*told: int | None, in_flight: int = 0, context: int | None = None) -> int | None:
    sizes = ContextSizes()
    one = worker(10 * GIB + (context or CONTEXT_BYTES), in_flight=in_flight, context=context)
    for each in told:
        sizes.observe("T4", one, each)
    return sizes.of(["T4"])


@pytest.mark.parametrize("context", [None, 700 * MIB])
def test_context_is_the_driver_s_figure_less_the_worker_s_own_memory(context: int | None) -> None:
    told = 10 * GIB + 812 * MIB
    assert seen(*[told] * 4, context=context) is None, "too few figures"
    assert seen(*[told] * 5, context=context) == 812 * MIB
    assert seen(*[told] * 5, 11 * GIB, context=context) == 812 * MIB, "one that is odd"


def test_context_is_not_learned_from_busy_workers_or_other_programs_figures() -> None:
    told = 10 * GIB + 812 * MIB
    assert seen(*[told] * 9, in_flight=1) is None, "its memory moves"
    assert seen(*[None] * 9) is None, "a container that hides processes"
    for odd in (GIB, 20 * GIB):  # another program of the same number
        assert seen(*[odd] * 9) is None


def test_context_that_was_measured_is_planned_with_and_told_to_the_next_worker() -> None:
    memory = SimpleNamespace(total=24 * GIB, used=0)
    nvml = StandInNvml(StandInCard(uuid="GPU-aa", name="T4", memory=memory))
    facts = ResourceFacts(Settings(), Devices(Cards.find(None, nvml)), Footprints())
    (card,) = [device for device in facts.devices if device.kind == "cuda"]
    manifest = text(8 * GIB)
    replica = Replica("m", 0, {card.id: 10 * GIB}, 0.0, state="ready")
    replica.worker = worker(10 * GIB + CONTEXT_BYTES)
    before = estimate(manifest, facts.load_config(manifest, "cuda"))
    usage = DeviceUsage(11 * GIB, {7: 10 * GIB + 812 * MIB})
    for _ in range(5):
        facts.update({card.id: usage}, [replica], {"m/0": 7})
        facts.observe(manifest, replica)
    assert facts.context_bytes(replica) == 812 * MIB
    after = estimate(manifest, facts.load_config(manifest, "cuda"))
    assert after.overhead - before.overhead == 812 * MIB - CONTEXT_BYTES
    assert facts.need(manifest, "cuda").measured, "what was learned of the model is still known"


def test_context_of_the_measured_size_is_in_what_a_worker_says_it_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: 3 * GIB)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    spec = Load(model="m", engine="text", path="", context_bytes=812 * MIB)
    with torch_env.loading(spec):
        pass
    assert torch_env.held_bytes("cuda") == 3 * GIB + 812 * MIB
    with torch_env.loading(Load(model="m", engine="text", path="")):
        pass
    assert torch_env.held_bytes("cuda") == 3 * GIB + CONTEXT_BYTES
