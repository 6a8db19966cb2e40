"""Drivers that do not know a card, told by its number on the PCI bus."""

from pathlib import Path

import pytest

from tests.support import machines
from tests.support.machines import BUS, Machine
from tests.support.nvml import StandInNvml


@pytest.mark.parametrize(
    ("device", "module", "told"),
    [
        ("0x2b85", "NVIDIA UNIX x86_64 Kernel Module  570.86", True),
        ("0x2b85", "NVIDIA UNIX Open Kernel Module for x86_64  570.86", False),
        ("0x2684", "NVIDIA UNIX x86_64 Kernel Module  570.86", False),
    ],
)
def test_driver_with_closed_modules_does_not_know_a_blackwell_card(
    device: str, module: str, told: bool, tmp_path: Path
) -> None:
    files = machines.on_bus() | machines.driver()
    files[f"sys/bus/pci/devices/{BUS}/device"] = f"{device}\n"
    files["proc/driver/nvidia/version"] = f"NVRM version: {module}  Tue Sep 23\n"
    missing = Machine(StandInNvml(), files).devices(tmp_path).missing or ""
    assert ("driver 570.86 runs with its closed kernel modules" in missing) == told
    assert ("packages with 'open' in their names" in missing) == told


@pytest.mark.parametrize(
    ("device", "version", "told"),
    [
        ("0x1b06", "590.44", "does not know this card any more (PCI device 0x1b06"),
        ("0x1b06", "580.95", "look for NVRM"),
        ("0x1e07", "590.44", "look for NVRM"),
        ("0x1b06", None, "install driver 580, the last that knows this card"),
        ("0x2684", None, "install driver 580 or newer"),
    ],
)
def test_driver_to_install_is_that_of_the_card_s_generation(
    device: str, version: str | None, told: str, tmp_path: Path
) -> None:
    files = machines.on_bus(bound=None)
    files[f"sys/bus/pci/devices/{BUS}/device"] = f"{device}\n"
    init = machines.NO_LIBRARY
    if version is not None:
        files, init = files | machines.driver(version), 0
    assert told in (Machine(StandInNvml(init=init), files).devices(tmp_path).missing or "")
