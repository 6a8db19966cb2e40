"""Writes files that only the owner may read, whole or not at all."""

import os
import secrets
from contextlib import suppress
from pathlib import Path


def replace_private(path: Path, data: bytes) -> None:
    """Write a file; replaces what was there. Raises OSError."""
    draft = _write_draft(path, data)
    os.replace(draft, path)


def publish_once(path: Path, data: bytes) -> None:
    """Write a file unless it is there; of two that do it at once the first one's stays. Raises
    OSError."""
    draft = _write_draft(path, data)
    with suppress(FileExistsError):
        os.link(draft, path)
    draft.unlink()


def _write_draft(path: Path, data: bytes) -> Path:
    draft = path.with_name(f"{path.name}.{secrets.token_hex(6)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(draft, flags, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return draft
