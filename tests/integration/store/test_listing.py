"""The list of models: what is seen of changes, and when."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_store.listing import Listing
from model_store.manifest import Manifest
from model_store.store import ModelStore


def test_list_sees_the_changes_of_another_process_at_once(
    store: ModelStore, source: Path, tmp_path: Path
) -> None:
    other = ModelStore(tmp_path / "store")
    for turn in range(20):
        assert other.names() == []
        store.import_folder(source, f"m{turn}")
        assert other.names() == [f"m{turn}"]
        store.remove(f"m{turn}")


def test_list_sees_two_changes_within_one_tick_of_the_clock(
    store: ModelStore, source: Path, tmp_path: Path
) -> None:
    root = tmp_path / "store"
    store.import_folder(source, "one")
    now = time.time_ns()
    os.utime(root, ns=(now, now))
    assert store.names() == ["one"]
    (root / "one").rename(root / ".partial" / "gone")
    os.utime(root, ns=(now, now))
    assert store.names() == []


class SlowListing(Listing):
    """Delays its first read of the folder until ``go_on`` is set."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.looking = threading.Event()
        self.go_on = threading.Event()

    def _read(self) -> Iterator[Manifest]:
        found = list(super()._read())
        if not self.looking.is_set():
            self.looking.set()
            assert self.go_on.wait(60)
        return iter(found)


def test_list_in_a_thread_is_never_half_of_another_thread_s(
    store: ModelStore, source: Path, tmp_path: Path
) -> None:
    store.import_folder(source, "mine")
    os.utime(tmp_path / "store", (1, 1))  # long ago, so that looks are remembered
    slow = SlowListing(tmp_path / "store")
    looker = threading.Thread(target=slow.all)
    looker.start()
    assert slow.looking.wait(60)
    assert list(slow.all()) == ["mine"]
    slow.go_on.set()
    looker.join()
    assert list(slow.all()) == ["mine"]


def test_list_in_memory_asks_the_disk_for_nothing(
    store: ModelStore, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.import_folder(source, "mine")
    store.listing.keep_in_memory()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", None)
        patch.setattr(Path, "iterdir", None)
        assert store.get("mine").name == "mine"
        assert store.names() == ["mine"]
    store.remove("mine")  # its own changes are seen at once
    assert store.names() == []
    store.import_folder(source, "again")
    assert store.names() == ["again"]
    other = ModelStore(tmp_path / "store")
    other.import_folder(source, "another")
    assert store.get("another").name == "another"  # asked for by name: at once
    other.remove("again")
    store.listing.refresh()
    assert store.names() == ["another"]


def test_list_keeps_what_was_seen_last(store: ModelStore, source: Path, tmp_path: Path) -> None:
    store.import_folder(source, "old")
    slow = SlowListing(tmp_path / "store")
    looker = threading.Thread(target=slow.refresh)
    looker.start()
    assert slow.looking.wait(60)  # it has read the folder, and is slow to tell
    store.import_folder(source, "new")
    slow.refresh()
    slow.go_on.set()
    looker.join()
    assert list(slow._seen[1]) == ["new", "old"]


def test_list_costs_next_to_nothing(
    store: ModelStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that no manifest is read again while no model comes or goes."""
    store.import_folder(source, "mine")
    time.sleep(0.15)
    store.names()

    def read(folder: Path) -> None:
        raise AssertionError(f"{folder.name} was read again")

    monkeypatch.setattr("model_store.listing.read_manifest", read)
    for _ in range(1000):
        store.get("mine")
        store.names()
