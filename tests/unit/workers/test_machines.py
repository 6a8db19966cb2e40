"""Devices of ten made-up machines, and their notes."""

import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import machines
from tests.support.machines import BUS, KERNEL, Machine, lose
from tests.support.nvml import NVMLError, StandInCard, StandInNvml
from workers.devices import Devices
from workers.devices.host import Host
from workers.devices.torch_build import TorchBuild, card_unfit, driver_unfit

GIB = machines.GIB


def states(devices: Devices) -> list[tuple[str, str]]:
    return [(each.id, each.condition.state) for each in devices.list()]


def reason(devices: Devices, number: int = 0) -> str:
    return devices.list()[number].condition.reason or ""


def test_machine_without_card_and_driver_is_quiet(tmp_path: Path) -> None:
    devices = machines.no_driver().devices(tmp_path)
    devices.read()
    assert states(devices) == [("cpu", "well")]
    assert (devices.missing, dict(devices.problems())) == (None, {})
    assert devices.note == "no NVIDIA driver: models run on the CPU"


def test_driver_that_is_too_old_for_torch_leaves_its_cards_out(tmp_path: Path) -> None:
    devices = machines.old_driver().devices(tmp_path)
    assert states(devices) == [("0", "lost"), ("cpu", "well")]
    assert reason(devices) == (
        "Driver 550.144.03 runs CUDA 12.4 at most, and torch 2.13.0 needs 13.0: install driver 580 "
        "or newer, or a torch for an older CUDA."
    )


@pytest.mark.parametrize(
    ("cuda", "newest", "fits"),
    [
        ("13.0", (13, 0), True),
        ("13.2", (13, 0), True),
        ("12.8", (12, 0), True),
        ("13.0", (12, 9), False),
        (None, (13, 0), False),
    ],
)
def test_driver_fits_a_torch_of_its_cuda_s_major(
    cuda: str | None, newest: tuple[int, int], fits: bool
) -> None:
    assert (driver_unfit(TorchBuild("2.13.0", cuda), "1.2", newest) is None) == fits


@pytest.mark.parametrize(
    ("capability", "cuda", "fits"),
    [
        ((6, 1), "13.0", False),
        ((7, 0), "13.0", False),
        ((7, 5), "13.0", True),
        ((8, 6), "13.0", True),
        ((12, 1), "13.0", True),
        (None, "13.0", True),
        ((6, 1), "12.6", True),
    ],
)
def test_card_fits_a_torch_that_has_code_for_it(
    capability: tuple[int, int] | None, cuda: str, fits: bool
) -> None:
    assert (card_unfit(TorchBuild("2.13.0", cuda), capability) is None) == fits


def test_card_that_comes_after_the_start_joins_without_a_restart(tmp_path: Path) -> None:
    machine = machines.card_without_nvml()
    devices = machine.devices(tmp_path)
    assert devices.problems()["card"] == (
        f"The NVIDIA driver has no kernel module for the running kernel {KERNEL}: build it (dkms "
        "autoinstall, with this kernel's headers), or start the kernel that it was built for."
    )
    machine.nvml.init = 0
    machine.nvml.cards = (machines.card("NVIDIA L4", 24),)
    devices.read()
    assert states(devices) == [("cpu", "well")]  # it is asked every few seconds only
    machine.clock += 6
    assert "0" in devices.read()
    assert states(devices) == [("0", "well"), ("cpu", "well")]
    assert not devices.problems()


def test_card_that_is_missing_is_looked_for_often_then_seldom(tmp_path: Path) -> None:
    machine = machines.card_without_nvml()
    cards = machine.cards(tmp_path)

    def searches(seconds: int) -> int:
        before = machine.nvml.calls
        for _ in range(seconds):
            machine.clock += 1
            cards.read()
        return machine.nvml.calls - before

    assert searches(60) == 12
    searches(300)
    assert searches(120) == 2


@pytest.mark.parametrize(
    ("files", "init", "words"),
    [
        (machines.on_bus(bound="nouveau"), machines.NO_LIBRARY, "bound to nouveau"),
        (machines.on_bus(bound="vfio-pci"), machines.NOT_LOADED, "bound to vfio-pci"),
        (machines.on_bus(bound=None), machines.NO_LIBRARY, "No NVIDIA driver is installed"),
        (
            machines.on_bus(bound=None)
            | {f"lib/modules/{KERNEL}/modules.dep": "updates/dkms/nvidia.ko.zst: x.ko\n"},
            machines.NOT_LOADED,
            "modprobe nvidia",
        ),
        (machines.on_bus() | machines.driver(), machines.NO_LIBRARY, "libnvidia-ml.so.1 is not"),
        (machines.on_bus() | {"sys/module/nvidia/version": ""}, 9, "nvidia-modprobe -c 0 -u"),
        (machines.on_bus() | machines.driver(), 18, "still runs the old module"),
        (machines.on_bus() | machines.driver(), 0, "need the open kernel modules"),
    ],
)
def test_card_that_is_missing_is_told_by_cause(
    files: dict[str, str], init: int, words: str, tmp_path: Path
) -> None:
    devices = Machine(StandInNvml(init=init), files).devices(tmp_path)
    assert words in (devices.missing or "")


def test_card_that_secure_boot_keeps_out_is_told_so(tmp_path: Path) -> None:
    machine = machines.card_without_nvml()
    machine.files[f"lib/modules/{KERNEL}/modules.dep"] = "extra/nvidia.ko.xz:\n"
    machine.write(tmp_path)
    machine.files = {}
    variables = tmp_path / "sys/firmware/efi/efivars"
    variables.mkdir(parents=True)
    name = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    (variables / name).write_bytes(b"\x06\0\0\0\x01")
    assert "Secure Boot is on" in (machine.devices(tmp_path).missing or "")


@pytest.mark.parametrize("visible", ["", "-1"])
def test_card_that_the_operator_hides_is_not_missing(visible: str, tmp_path: Path) -> None:
    machine = machines.card_without_nvml()
    machine.environ = {"CUDA_VISIBLE_DEVICES": visible}
    assert machine.devices(tmp_path).missing is None


@pytest.mark.parametrize(
    ("environ", "files", "words"),
    [
        ("all", {}, "This container was started without a GPU"),
        ("all", machines.driver(), "add utility to NVIDIA_DRIVER_CAPABILITIES"),
        ("void", {}, None),
        (None, {}, None),
    ],
)
def test_container_without_a_card_is_told_by_cause(
    environ: str | None, files: dict[str, str], words: str | None, tmp_path: Path
) -> None:
    machine = machines.container_without_gpu()
    machine.files |= files
    machine.environ = {} if environ is None else {"NVIDIA_VISIBLE_DEVICES": environ}
    missing = machine.devices(tmp_path).missing
    assert (missing is None) if words is None else (words in (missing or ""))


def test_container_that_lost_its_right_to_the_card_keeps_its_models(tmp_path: Path) -> None:
    machine = Machine(
        StandInNvml(machines.card("NVIDIA L4", 24)),
        machines.on_bus() | machines.driver() | {".dockerenv": ""},
        {"NVIDIA_VISIBLE_DEVICES": "all"},
    )
    devices = machine.devices(tmp_path)
    assert "0" in devices.read()
    assert states(devices)[0] == ("0", "well")
    machine.denied = PermissionError(errno.EPERM, "Operation not permitted")
    machine.clock += 11
    assert "0" in devices.read()
    assert states(devices)[0] == ("0", "doubtful")
    assert "daemon-reload" in reason(devices)
    afresh = Machine(StandInNvml(init=999), machine.files, machine.environ, denied=machine.denied)
    assert "daemon-reload" in (afresh.devices(tmp_path / "afresh").missing or "")


@pytest.mark.parametrize(
    ("error", "words"), [(errno.EPERM, "PrivateDevices"), (errno.EACCES, "add it to the group")]
)
def test_card_that_this_process_may_not_open_is_told_so(
    error: int, words: str, tmp_path: Path
) -> None:
    files = machines.on_bus() | machines.driver()
    machine = Machine(StandInNvml(init=999), files, denied=PermissionError(error, "no"))
    assert words in (machine.devices(tmp_path).missing or "")


def test_driver_that_was_updated_under_us_puts_its_cards_in_doubt(tmp_path: Path) -> None:
    machine = machines.two_cards()
    devices = machine.devices(tmp_path)
    devices.read()
    assert [state for _, state in states(devices)] == ["well"] * 3
    library = "7f 00:00 r-xp /usr/lib/libnvidia-ml.so.580.95 (deleted)\n"
    (tmp_path / "proc/self").mkdir()
    (tmp_path / "proc/self/maps").write_text(library)
    machine.clock += 11
    assert {"0", "1"} <= devices.read().keys()
    assert [state for _, state in states(devices)] == ["doubtful", "doubtful", "well"]
    assert "580.95 was replaced" in reason(devices)


def test_driver_of_another_version_than_its_module_puts_its_cards_in_doubt(tmp_path: Path) -> None:
    machine = machines.two_cards()
    machine.files |= machines.driver("570.86")
    devices = machine.devices(tmp_path)
    devices.read()
    assert states(devices)[0] == ("0", "doubtful")
    assert "updated to 580.95, and the kernel still runs 570.86" in reason(devices)


def test_card_that_falls_off_the_bus_is_lost_and_comes_back(tmp_path: Path) -> None:
    machine = machines.two_cards()
    devices = machine.devices(tmp_path)
    assert {"0", "1"} <= devices.read().keys()
    was = machine.nvml.cards[0].memory
    lose(machine)
    assert "0" not in devices.read()
    assert states(devices)[0] == ("0", "doubtful")
    assert "0" not in devices.read()
    assert states(devices)[:2] == [("0", "lost"), ("1", "well")]
    assert "fell off the bus" in devices.problems()["0"]
    machine.nvml.cards[0].memory = was
    assert "0" in devices.read()
    assert states(devices)[0] == ("0", "well")


def test_card_keeps_its_id_when_the_order_changes(tmp_path: Path) -> None:
    machine = machines.two_cards()
    devices = machine.devices(tmp_path)
    first, second, _ = devices.list()
    lose(machine)
    devices.read()
    devices.read()
    machine.nvml.cards = (machine.nvml.cards[1], machines.card("NVIDIA L4", 24, 7))
    machine.clock += 6
    devices.read()
    found = {each.id: (each.pin, each.condition.state) for each in devices.list()[:3]}
    new = machine.nvml.cards[1].uuid
    assert found == {"0": (first.pin, "lost"), "1": (second.pin, "well"), new: (new, "well")}


def test_card_of_a_uuid_is_found_behind_a_lost_one(tmp_path: Path) -> None:
    machine = machines.two_cards()
    wanted = machine.nvml.cards[1].uuid
    machine.nvml.cards[0].uuid = NVMLError(StandInNvml.NVML_ERROR_GPU_IS_LOST)
    machine.environ = {"CUDA_VISIBLE_DEVICES": wanted[:12]}
    assert [each.pin for each in machine.devices(tmp_path).list()] == [wanted, ""]


def test_card_that_torch_has_no_code_for_is_left_out_beside_a_good_one(tmp_path: Path) -> None:
    devices = machines.two_unequal_cards().devices(tmp_path)
    assert states(devices) == [("0", "lost"), ("1", "well"), ("cpu", "well")]
    assert "compute capability is 6.1, and torch 2.13.0 has code from 7.5" in reason(devices)


def test_card_in_exclusive_mode_and_instances_are_devices(tmp_path: Path) -> None:
    machine = machines.mig()
    devices = machine.devices(tmp_path)
    found = [(each.id, each.exclusive) for each in devices.list()]
    assert found == [("MIG-a", False), ("MIG-b", False), ("1", True), ("cpu", False)]
    machine.nvml.cards[1].compute_mode = 2
    assert "prohibited" in reason(machine.devices(tmp_path / "again"), 2)


def test_card_without_memory_of_its_own_has_the_machine_s(tmp_path: Path) -> None:
    devices = machines.gb10().devices(tmp_path)
    readings = devices.read()
    card, cpu = devices.list()
    assert (card.unified, card.memory_bytes) == (True, cpu.physical_bytes)
    assert readings["0"].used_bytes == readings["cpu"].used_bytes > 0


def test_card_under_wsl_tells_little_and_nothing_that_cannot_be(tmp_path: Path) -> None:
    devices = machines.wsl().devices(tmp_path)
    reading = devices.read()["0"]
    assert (reading.used_bytes, reading.processes, reading.power_w) == (0, {}, None)
    assert not devices.problems()
    machine = machines.wsl()
    machine.nvml.init = 9
    assert "update the driver in Windows" in (machine.devices(tmp_path / "old").missing or "")


def test_card_of_a_laptop_sleeps_while_no_model_is_loaded(tmp_path: Path) -> None:
    machine = machines.laptop()
    devices = machine.devices(tmp_path)
    devices.read(idle=True)
    machine.clock += 61
    devices.read(idle=True)
    assert machine.nvml.opened == 0
    calls = machine.nvml.calls
    for _ in range(100):
        machine.clock += 1
        assert devices.read(idle=True)["0"].utilisation is None
    assert devices.list()[0].note == "sleeps while no model is loaded"
    assert machine.nvml.calls == calls
    assert devices.read(idle=False)["0"].utilisation == 0.25
    assert machine.nvml.opened == 1
    (tmp_path / f"sys/bus/pci/devices/{BUS}/power/runtime_status").write_text("suspended\n")
    devices.read(idle=True)
    assert machine.nvml.opened == 0
    assert not devices.problems()


def test_driver_that_hangs_leaves_the_last_figures_then_doubtful_cards(tmp_path: Path) -> None:
    machine = machines.two_cards()
    machine.look_seconds = 0.1
    devices = machine.devices(tmp_path)
    assert devices.read()["0"].used_bytes == GIB // 2
    machine.nvml.waits_for = threading.Event()
    assert devices.read()["0"].used_bytes == GIB // 2
    assert states(devices)[0] == ("0", "well")
    machine.clock += 11
    began = time.monotonic()
    assert list(devices.read()) == ["cpu"]
    assert time.monotonic() - began < 30
    assert states(devices) == [("0", "doubtful"), ("1", "doubtful"), ("cpu", "well")]
    assert "does not answer" in devices.problems()["0"]
    calls = machine.nvml.calls
    devices.read()
    assert machine.nvml.calls == calls  # no second call while one is out
    machine.nvml.waits_for.set()
    ends = time.monotonic() + 60
    while "0" not in devices.read() or devices.problems():
        assert time.monotonic() < ends
        machine.clock += 1
    devices.close()


def test_driver_that_hangs_does_not_keep_the_process_from_ending(tmp_path: Path) -> None:
    machine = machines.two_cards()
    machine.look_seconds = 0.1
    machine.nvml.waits_for = threading.Event()
    devices = machine.devices(tmp_path)
    devices.close()
    assert "does not show the card (it does not answer in time)" in (devices.missing or "")
    asking = [thread for thread in threading.enumerate() if thread.name == "nvml"]
    assert all(thread.daemon for thread in asking)
    machine.nvml.waits_for.set()


def test_memory_that_the_driver_keeps_is_neither_free_nor_another_program_s() -> None:
    plain = machines.memory(24, 0.8)
    told = StandInCard(memory=plain, memory_v2=machines.memory(24, 0.3))
    told.memory_v2.reserved = GIB // 2
    devices = Devices(Machine(StandInNvml(told)).cards(Path("/nonexistent")), Host())
    assert devices.list()[0].memory_bytes == int(23.5 * GIB)
    assert devices.read()["0"].used_bytes == int(0.3 * GIB)


@pytest.mark.parametrize("make", machines.MACHINES.values(), ids=machines.MACHINES)
def test_machine_gives_a_reason_for_each_device_in_doubt(
    make: Callable[[], Machine], tmp_path: Path
) -> None:
    devices = make().devices(tmp_path)
    devices.read()
    for text in devices.problems().values():
        assert text.endswith((".", ")"))
        assert ":" in text  # what is: what to do
    devices.close()
