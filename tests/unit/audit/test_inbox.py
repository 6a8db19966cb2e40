"""Entries that commands leave as files come into the log once, and only if they are ours."""

import json
import os
from pathlib import Path

import pytest

from bitinglip.audit.entry import Action, Actor, Entry
from bitinglip.audit.inbox import put, take
from bitinglip.audit.start import begin
from bitinglip.settings import Settings
from tests.support.audit_log import KEY, entries, using

REMOVED = Entry(Action.MODEL_REMOVE, Actor("cli", "me"), "m", before={"kind": "text"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit"


def test_inbox_entry_is_entered_once(tmp_path: Path, folder: Path) -> None:
    put(folder, KEY, REMOVED)
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    data = file.read_bytes()
    with using(tmp_path / "bitinglip.db", folder=folder) as (run, audit):
        run(audit.flush())
        assert [each.name for each in folder.iterdir()] == ["head"]
        file.write_bytes(data)  # as after a crash between the two
        run(audit.flush())
        (row,) = entries(run, audit)
        assert (row["actor"], row["actor_name"], row["action"], row["target"]) == (
            "cli",
            "me",
            "model.remove",
            "m",
        )
        assert (row["before"], row["after"]) == ({"kind": "text"}, None)
        assert run(audit.verify()).valid


def test_inbox_takes_no_entry_that_is_not_sealed(tmp_path: Path, folder: Path) -> None:
    put(folder, b"another key", REMOVED)
    put(folder, KEY, Entry(Action.BACKUP))
    (forged,) = [file for file in folder.iterdir() if b"model.remove" in file.read_bytes()]
    text = json.loads(forged.read_bytes())["entry"]
    (folder / "1.json").write_text(json.dumps({"entry": text, "seal": "00"}))
    (folder / "2.json").write_text("{")
    (folder / "3.json").write_text("[]")
    (folder / "4.json").write_bytes(b"x" * 100_000)
    (folder / "5.json").write_bytes(b"\xff")
    os.symlink(forged, folder / "6.json")
    (folder / "draft.json.abc").write_text("unfinished")
    with using(tmp_path / "bitinglip.db", folder=folder) as (run, audit):
        run(audit.flush())
        assert [row["action"] for row in entries(run, audit)] == ["backup"]
    assert {file.name for file in folder.iterdir()} == {"draft.json.abc", "head"}


def test_inbox_that_cannot_be_read_stops_no_other_entry(tmp_path: Path, folder: Path) -> None:
    unreadable = folder / "1.json"
    unreadable.mkdir(parents=True)  # as another user's file is; these tests may run as root
    with using(tmp_path / "bitinglip.db", folder=folder) as (run, audit):
        run(begin(audit, Settings()))
        audit.remember(REMOVED)
        with pytest.raises(OSError, match="directory"):
            run(audit.flush())
        assert [row["action"] for row in entries(run, audit)] == ["model.remove", "server.start"]
        assert (folder / "head").exists()
        unreadable.rmdir()
        put(folder, KEY, Entry(Action.BACKUP))
        run(audit.flush())
        assert entries(run, audit)[0]["action"] == "backup"
        assert run(audit.verify()).valid


def test_inbox_that_is_not_there_is_empty(folder: Path) -> None:
    assert take(folder, KEY) == []
