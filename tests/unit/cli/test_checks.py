"""Conclusions of ``doctor`` from its findings; the machine itself is made up."""

import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from bitinglip.home import Home
from bitinglip.settings import Devices as DeviceSettings
from bitinglip.settings import FakeDevice, Settings
from cli.checks import accelerator, checks, confinement
from cli.checks.findings import Finding
from cli.context import CliContext
from tests.support.nvml import NVMLError, StandInCard, StandInNvml
from workers.confinement import Kernel
from workers.devices import Devices
from workers.devices.cards import Cards
from workers.devices.host import Host
from workers.devices.torch_build import TorchBuild, cuda_of

GIB = 1024**3


def look(
    nvml: StandInNvml, torch_cuda: str | None = None, settings: Settings | None = None
) -> list[Finding]:
    chosen = settings or Settings()
    devices = Devices(Cards.find(None, nvml), Host(), chosen.devices.cpu_memory_bytes)
    build = TorchBuild("2.13.0", torch_cuda)
    found = list(accelerator.findings(devices, chosen, build))
    devices.close()
    assert all(finding.advice for finding in found if finding.level != "ok")
    return found


def levels(found: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.check, finding.level) for finding in found]


def card(uuid: str = "GPU-a") -> StandInCard:
    return StandInCard(uuid=uuid, memory=SimpleNamespace(total=85_000_000_000, used=1_000_000_000))


def test_driver_that_is_missing_makes_a_cpu_machine_and_is_said_once() -> None:
    for torch_cuda in (None, "13.0"):
        found = look(StandInNvml(init=StandInNvml.NVML_ERROR_LIBRARY_NOT_FOUND), torch_cuda)
        assert levels(found) == [("gpu", "ok"), ("cpu", "ok"), ("torch", "ok")]
        assert found[0].detail == "no NVIDIA driver: models run on the CPU"


@pytest.mark.parametrize(
    "nvml", [StandInNvml(), StandInNvml(StandInCard(memory=NVMLError(15))), StandInNvml(init=18)]
)
def test_driver_that_shows_no_card_is_a_warning(nvml: StandInNvml) -> None:
    assert levels(look(nvml)) == [("gpu", "warning"), ("cpu", "ok"), ("torch", "ok")]


def test_cards_are_told_with_their_memory() -> None:
    found = look(StandInNvml(card("GPU-a"), card("GPU-b")), "13.0")
    assert levels(found) == [("gpu", "ok")] * 2 + [("cpu", "ok"), ("torch", "ok")]
    assert found[1].detail == "1: NVIDIA H100, 85.0 GB, 268.4 MB kept free, 1.0 GB in use"


@pytest.mark.parametrize(
    ("driver", "torch_cuda", "level"),
    [
        (13000, "13.0", "ok"),
        (13000, "12.8", "ok"),
        (12020, "13.0", "error"),
        (13000, None, "error"),
    ],
)
def test_torch_build_must_fit_the_driver(driver: int, torch_cuda: str | None, level: str) -> None:
    assert levels(look(StandInNvml(card(), cuda=driver), torch_cuda))[-1] == ("torch", level)


def test_cpu_budget_fits_into_ram() -> None:
    def cpu(**values: int) -> Finding:
        settings = Settings(devices=DeviceSettings(**values))
        return next(
            each for each in look(StandInNvml(init=9), None, settings) if each.check == "cpu"
        )

    found = cpu(cpu_memory_bytes=GIB, page_cache_bytes=5_000_000)
    assert (found.level, "1.1 GB of " in found.detail) == ("ok", True)
    assert found.detail.endswith("5.0 MB for the files of unloaded models")
    assert cpu(cpu_memory_bytes=10**18).level == "warning"


def test_fake_devices_are_told_as_such() -> None:
    settings = Settings(devices=DeviceSettings(fake=[FakeDevice(name="big", memory_bytes=10**9)]))
    found = list(accelerator.every_device(settings))
    assert levels(found)[:2] == [("gpu", "ok"), ("gpu", "ok")]
    assert "made-up" in found[0].detail
    assert found[1].detail.startswith("fake0: big, 1.0 GB")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("cuda: Optional[str] = None", None),
        ("cuda: Optional[str] = '13.0'", "13.0"),
        ('cuda = "12.8"', "12.8"),
        ("hip: Optional[str] = '6.2'", None),
    ],
)
def test_torch_build_is_read_from_its_version_file(line: str, found: str | None) -> None:
    assert cuda_of(f"debug = False\n{line}\n") == found


@pytest.fixture
def place(tmp_path: Path) -> CliContext:
    home = Home(tmp_path / "home")
    home.create()
    return CliContext(home, None)


def database(place: CliContext, version: str) -> None:
    with closing(sqlite3.connect(place.home.database)) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES (?)", (version,))
        connection.commit()


@pytest.mark.parametrize(("version", "level"), [("0001", "ok"), ("9999", "error")])
def test_database_check_only_reads(place: CliContext, version: str, level: str) -> None:
    database(place, version)
    before = place.home.database.read_bytes()
    assert checks._database(place, None).level == level
    assert place.home.database.read_bytes() == before
    assert not place.home.lock.exists()


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0 and then nothing", b"junk" * 500])
def test_database_that_is_damaged_is_an_error(place: CliContext, content: bytes) -> None:
    place.home.database.write_bytes(content)
    finding = checks._database(place, None)
    assert (finding.level, finding.advice) == ("error", "restore a backup, or move it away")


def test_home_that_others_may_write_to_is_an_error(place: CliContext) -> None:
    assert checks._home(place).level == "ok"
    place.home.root.chmod(0o777)
    assert "chmod 700" in checks._home(place).advice


@pytest.mark.parametrize(
    ("free", "level"), [(10**8, "error"), (5 * 10**9, "warning"), (10**12, "ok")]
)
def test_disk_space_is_checked(
    place: CliContext, free: int, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: _Usage(free))
    assert checks._disk(place).level == level


class _Usage:
    def __init__(self, free: int) -> None:
        self.free = free


@pytest.mark.parametrize(
    ("mode", "kernel", "level", "words"),
    [
        ("auto", Kernel(7, True), "ok", "Landlock 7 and a filter of system calls"),
        ("require", Kernel(3, True), "ok", "Landlock 3"),
        ("auto", Kernel(0, True), "warning", "without files: this kernel has no Landlock"),
        ("require", Kernel(2, False), "error", "without truncation: needs Landlock 3"),
        ("off", Kernel(7, True), "warning", "may do what the server's user may"),
    ],
)
def test_confinement_is_told_as_the_machine_has_it(
    mode: str, kernel: Kernel, level: str, words: str
) -> None:
    finding = confinement.judge(mode, kernel)
    assert (finding.check, finding.level) == ("confinement", level)
    assert words in finding.detail
    assert bool(finding.advice) == (level != "ok")


def test_memory_limit_of_a_card_that_is_not_there_is_a_warning() -> None:
    own = DeviceSettings.model_validate({"memory_limit": {"0": 10 * GIB, "GPU-b": GIB}})
    devices = Devices(Cards.find(None, StandInNvml(card())), Host(), limits=own.memory_limit)
    found = list(accelerator.findings(devices, Settings(devices=own), TorchBuild("2.13.0", "13.0")))
    devices.close()
    assert "0: NVIDIA H100, 10.7 GB" in found[0].detail
    (warning,) = [each for each in found if each.level == "warning"]
    assert "names 'GPU-b', and no such card is there" in warning.detail
    assert warning.advice == "name one of: 0"
