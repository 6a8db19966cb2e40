"""Facts that an older version has told of models' files, told again at a start."""

import os
from pathlib import Path

import msgspec
import pytest

from model_store import rereading
from model_store.manifest import FACTS, Manifest, read_manifest, write_manifest
from model_store.rereading import reread, told_before
from model_store.store import ModelStore
from tests.support.model_folders import llama


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def older(store: ModelStore, folder: Path, name: str = "old") -> Manifest:
    """Take a model in as an older version did; return its manifest of today."""
    made = store.import_folder(llama(folder), name)
    write_manifest(store.folder(name), msgspec.structs.replace(made, facts=0, max_context=None))
    return made


def test_facts_of_an_older_version_are_told_again_once(store: ModelStore, tmp_path: Path) -> None:
    made = older(store, tmp_path / "m")
    store.import_folder(llama(tmp_path / "new", max_position_embeddings=64), "new")
    assert told_before(store) == ["old"]
    assert reread(store, "old")
    assert read_manifest(store.folder("old")) == made
    assert store.get("old") == made, "a server that lists from memory sees it"
    assert told_before(store) == []
    assert not reread(store, "old")


def test_facts_of_files_that_have_changed_since_stay(store: ModelStore, tmp_path: Path) -> None:
    """They may hold other things than were taken in: a check by their contents comes first."""
    older(store, tmp_path / "m")
    path = store.path("old") / "config.json"
    path.write_text(path.read_text().replace("128", "256"))
    os.utime(path, ns=(1, 1))
    assert not reread(store, "old")
    assert told_before(store) == ["old"]


def test_facts_of_a_model_that_would_be_refused_today_stay(
    store: ModelStore, tmp_path: Path
) -> None:
    made = older(store, tmp_path / "m")
    path = store.path("old") / "config.json"
    path.write_text("[]")
    stat = path.stat()
    entries = tuple(
        msgspec.structs.replace(each, size=stat.st_size, mtime_ns=stat.st_mtime_ns)
        if each.path == "config.json"
        else each
        for each in made.files
    )
    write_manifest(store.folder("old"), msgspec.structs.replace(made, facts=0, files=entries))
    assert not reread(store, "old")
    assert read_manifest(store.folder("old")).facts == 0


def test_facts_that_cannot_be_told_end_no_start(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older(store, tmp_path / "m")

    def broken(*_: object) -> Manifest:
        raise ZeroDivisionError

    monkeypatch.setattr(rereading, "refreshed", broken)
    assert not reread(store, "old")
    assert not reread(store, "gone")
    assert read_manifest(store.folder("old")).facts < FACTS
