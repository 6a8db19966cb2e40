"""What ``doctor`` concludes from what it finds; the machine itself is made up."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from bitinglip.home import Home
from cli import accelerator, checks
from cli.accelerator import Driver
from cli.place import Place
from workers.devices import Device

NEW = Driver("580.95", (13, 0))
OLD = Driver("535.10", (12, 2))
CARD = Device("0", "NVIDIA H100", "cuda", 85_000_000_000, 85_000_000_000)


def look(
    monkeypatch: pytest.MonkeyPatch,
    driver: Driver | None,
    cards: tuple[Device, ...] = (CARD,),
    torch_cuda: str | None = None,
) -> list[tuple[str, str]]:
    monkeypatch.setattr(accelerator, "_driver", lambda: driver)
    monkeypatch.setattr(accelerator, "_cuda_of_torch", lambda: torch_cuda)
    monkeypatch.setattr("workers.devices.cuda_devices", lambda: cards)
    findings = list(accelerator.accelerator())
    assert all(finding.advice for finding in findings if finding.level != "ok")
    return [(finding.check, finding.level) for finding in findings]


def test_a_machine_without_a_driver_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    for torch_cuda in (None, "13.0"):
        assert look(monkeypatch, None, (), torch_cuda) == [("gpu", "ok"), ("torch", "ok")]


def test_a_driver_without_cards_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert look(monkeypatch, NEW, ()) == [("gpu", "warning"), ("torch", "ok")]


def test_each_card_is_told_and_torch_must_go_with_the_driver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = (CARD, CARD)
    cards = [("gpu", "ok")] * 2
    assert look(monkeypatch, NEW, both, "13.0") == [*cards, ("torch", "ok")]
    assert look(monkeypatch, NEW, both, "12.8") == [*cards, ("torch", "ok")]
    assert look(monkeypatch, OLD, both, "13.0") == [*cards, ("torch", "error")]
    assert look(monkeypatch, NEW, both, None) == [*cards, ("torch", "error")]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("cuda: Optional[str] = None", None),
        ("cuda: Optional[str] = '13.0'", "13.0"),
        ('cuda = "12.8"', "12.8"),
        ("hip: Optional[str] = '6.2'", None),
    ],
)
def test_the_build_is_read_from_torchs_version_file(line: str, found: str | None) -> None:
    match = accelerator._CUDA.search(f"debug = False\n{line}\n")
    assert (match[1] if match else None) == found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    home = Home(tmp_path / "home")
    home.create()
    return Place(home, None)


def database(place: Place, version: str) -> None:
    with closing(sqlite3.connect(place.home.database)) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES (?)", (version,))
        connection.commit()


@pytest.mark.parametrize(("version", "level"), [("0001", "ok"), ("9999", "error")])
def test_a_database_is_only_looked_at(place: Place, version: str, level: str) -> None:
    database(place, version)
    before = place.home.database.read_bytes()
    assert checks._database(place).level == level
    assert place.home.database.read_bytes() == before
    assert not place.home.lock.exists()


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0 and then nothing", b"junk" * 500])
def test_a_damaged_database_is_an_error(place: Place, content: bytes) -> None:
    place.home.database.write_bytes(content)
    finding = checks._database(place)
    assert (finding.level, finding.advice) == ("error", "restore a backup, or move it away")


def test_a_home_that_others_may_write_to_is_an_error(place: Place) -> None:
    assert checks._home(place).level == "ok"
    place.home.root.chmod(0o777)
    assert "chmod 700" in checks._home(place).advice


@pytest.mark.parametrize(
    ("free", "level"), [(10**8, "error"), (5 * 10**9, "warning"), (10**12, "ok")]
)
def test_disk_space(place: Place, free: int, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: _Usage(free))
    assert checks._disk(place).level == level


class _Usage:
    def __init__(self, free: int) -> None:
        self.free = free
