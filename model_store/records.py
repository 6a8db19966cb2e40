"""Keeps beside a model's manifest what is told of it later: its use, a pin, and notes.

Each is a small file that is replaced whole. A damaged or missing one says nothing.
"""

import secrets
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from model_store.disk import sync
from model_store.errors import BadFiles

USAGE = "usage.json"
PINNED = "pinned"  #: an empty file
NOTES = "notes.txt"
LONGEST_NOTES = 4096  #: characters


class Usage(msgspec.Struct, frozen=True):
    """Holds when a model was used; written by the server alone."""

    last_used_at: datetime | None = None
    loads: int = 0


class Care(msgspec.Struct, frozen=True):
    """Holds what operators say of a model."""

    pinned: bool = False  #: no clean-up removes it
    notes: str = ""


def usage_of(folder: Path) -> Usage:
    """Return the usage of the model in this folder."""
    try:
        return msgspec.json.decode((folder / USAGE).read_bytes(), type=Usage)
    except (OSError, msgspec.DecodeError):
        return Usage()


def care_of(folder: Path) -> Care:
    """Return what operators have said of the model in this folder."""
    try:
        notes = (folder / NOTES).read_bytes().decode(errors="replace")
    except OSError:
        notes = ""
    return Care((folder / PINNED).exists(), notes)


def note_use(folder: Path, *, loaded: bool) -> None:
    """Record that the model is in use now. Raises OSError."""
    now = Usage(datetime.now(UTC), usage_of(folder).loads + loaded)
    _write(folder / USAGE, msgspec.json.encode(now))


def change_care(folder: Path, pinned: bool | None, notes: str | None) -> None:
    """Record what operators say of the model; None leaves it as it is. Raises BadFiles, OSError."""
    if notes is not None and len(notes) > LONGEST_NOTES:
        raise BadFiles(f"Notes are at most {LONGEST_NOTES} characters long.")
    # Of each its own file, so that two changes at once need no lock.
    if pinned:
        _write(folder / PINNED, b"")
    elif pinned is not None:
        (folder / PINNED).unlink(missing_ok=True)
    if notes is not None:
        _write(folder / NOTES, notes.encode())
    sync(folder)


def carry_over(old: Path, new: Path) -> None:
    """Copy the records of a model to the folder of its successor."""
    for name in (USAGE, PINNED, NOTES):
        with suppress(FileNotFoundError):
            (new / name).write_bytes((old / name).read_bytes())
            sync(new / name)


def _write(path: Path, content: bytes) -> None:
    # Two writers at once have a draft each; the later one stays.
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    try:
        draft.write_bytes(content)
        draft.chmod(0o600)
        sync(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
