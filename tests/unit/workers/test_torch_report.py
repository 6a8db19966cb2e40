"""Torch tells for which cards it has code, and of cards that NVML does not."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support import machines
from tests.support.machines import GIB, Machine
from workers.devices import child, torch_report
from workers.devices.torch_build import TorchBuild, card_unfit, needs_building
from workers.devices.torch_report import TorchCard, TorchReport
from workers.engines import torch_report as asked

#: what wheels of two torches have code for
OLD = "sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90"
NEW = "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120 compute_120"
UUID = "00000000-1111-2222-3333-444444444444"


@pytest.mark.parametrize(
    ("listed", "capability", "result"),
    [
        (NEW, (6, 1), "a torch for CUDA 12"),
        (NEW, (7, 0), "a torch for CUDA 12"),
        (NEW, (7, 5), "fits"),
        (NEW, (8, 6), "fits"),
        (NEW, (8, 9), "fits"),  # code of 8.6 runs there
        (NEW, (9, 0), "fits"),
        (NEW, (12, 0), "fits"),
        (NEW, (12, 1), "fits"),
        (NEW, (13, 0), "is built"),
        (NEW, (11, 0), "a newer torch"),  # code of 10.0 does not run there, nor what is for 12.0
        (OLD, (12, 0), "a newer torch"),
        (f"{OLD} compute_90", (12, 0), "is built"),
        (f"{OLD} compute_90", (8, 0), "fits"),
        ("sm_90a compute_90a", (12, 0), "a newer torch"),  # for that card only
        ("sm_90a compute_90a", (9, 0), "fits"),
        ("nonsense", (6, 1), "fits"),
        (NEW, None, "fits"),
    ],
)
def test_architectures_of_torch_decide_which_cards_it_has_code_for(
    listed: str, capability: tuple[int, int] | None, result: str
) -> None:
    build = TorchBuild("2.13.0", "13.0", tuple(listed.split()))
    why = card_unfit(build, capability)
    assert (why is None) == (result in ("fits", "is built"))
    assert needs_building(build, capability) == (result == "is built")
    assert why is None or result in why


def test_architectures_are_asked_once_and_judge_the_cards_again(tmp_path: Path) -> None:
    machine = machines.two_unequal_cards()
    machine.nvml.cards[0].capability = (11, 0)
    machine.nvml.cards[1].capability = (13, 0)
    devices = machine.devices(tmp_path)
    assert [each.condition.state for each in devices.list()] == ["well"] * 3
    assert not devices.ask_torch()  # there was no answer
    machine.report = TorchReport(tuple(NEW.split()))
    assert devices.ask_torch()
    assert not devices.ask_torch()
    assert machine.asked == 2
    first, second, _ = devices.list()
    assert (first.condition.state, second.condition.state) == ("lost", "well")
    assert "code for 7.5, 8.0, 8.6, 9.0, 10.0, 12.0: install a newer" in first.condition.reason  # type: ignore[operator]
    assert "built for it at its first use" in (second.note or "")
    devices.close()


def no_nvml() -> Machine:
    """Return a container with a card, to which the driver's library was not given."""
    machine = machines.container_without_gpu()
    machine.files |= {"dev/nvidiactl": "", "dev/nvidia0": ""}
    return machine


def test_torch_is_asked_for_cards_that_nvml_does_not_tell(tmp_path: Path) -> None:
    machine = no_nvml()
    devices = machine.devices(tmp_path)
    assert "add utility" in devices.problems()["card"]
    card = TorchCard(UUID, "NVIDIA L4", 24 * GIB, (8, 9))
    machine.report = TorchReport(tuple(NEW.split()), (card,))
    assert devices.ask_torch()
    shown = devices.list()[0]
    assert (shown.id, shown.kind, shown.memory_bytes) == ("0", "cuda", 24 * GIB)
    assert (shown.pin, shown.condition.state) == (f"GPU-{UUID}", "well")
    assert "0" in devices.read()
    assert not devices.problems()
    assert "add utility" in (devices.note or "")
    assert "what other programs hold there is not known" in (devices.note or "")
    machine.nvml.init = 0  # the library comes after all
    machine.nvml.cards = (machines.card("NVIDIA L4", 23, uuid=f"GPU-{UUID}", capability=(8, 9)),)
    machine.clock += 6
    devices.read()
    assert [(each.id, each.memory_bytes) for each in devices.list()[:1]] == [("0", 23 * GIB)]
    assert devices.note is None
    devices.close()


def test_torch_is_asked_for_no_card_where_there_can_be_none(tmp_path: Path) -> None:
    hidden = no_nvml()
    hidden.environ = {**hidden.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    without = (machines.no_driver(), machines.container_without_gpu(), machines.card_without_nvml())
    for number, machine in enumerate((*without, hidden)):
        devices = machine.devices(tmp_path / str(number))
        assert not devices.ask_torch()
        assert machine.asked == 0


def test_torch_report_that_is_malformed_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for output in (b"", b"{}", b'{"architectures": [], "cards": [{"uuid": ""}]}'):

        def run(*_: Any, said: bytes = output) -> tuple[bytes, int]:
            return said, 0

        monkeypatch.setattr(child, "run", run)
        assert torch_report.ask_torch(cards=True) is None


def test_torch_tells_of_a_card_what_a_worker_is_pinned_by(monkeypatch: pytest.MonkeyPatch) -> None:
    told = SimpleNamespace(uuid=UUID, name="NVIDIA L4", total_memory=GIB, major=8, minor=9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _index: told)
    assert TorchCard(**asked.card(0)) == TorchCard(UUID, "NVIDIA L4", GIB, [8, 9])  # type: ignore[arg-type]
    assert TorchCard(f"MIG-{UUID}", "an instance", GIB, (8, 0)).pin == f"MIG-{UUID}"
