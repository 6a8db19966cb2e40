"""Keeps the end of the log beside the database too, in the home's file ``audit/head``.

An older copy of the database is whole in itself; by this file it is known for what it is. The file
may be a second behind, never ahead.
"""

import hmac
import json
from pathlib import Path

from bitinglip.audit.chain import Head, Known, seal_head
from bitinglip.private_files import replace_private

NAME = "head"


def write(folder: Path, key: bytes, head: Head) -> None:
    """Note where the log ends, on the disk when this returns. Raises OSError."""
    folder.mkdir(mode=0o700, exist_ok=True)
    values = {"last": head.last, "seal": head.seal.hex()}
    sealed = {**values, "file_seal": _seal(key, head.last, head.seal)}
    replace_private(folder / NAME, json.dumps(sealed).encode())


def read(folder: Path, key: bytes) -> Known | None:
    """Return where the log ended; None if that is not known. Raises OSError."""
    try:
        found = json.loads((folder / NAME).read_bytes())
        known = Known(int(found["last"]), bytes.fromhex(found["seal"]))
        sealed = hmac.compare_digest(str(found["file_seal"]), _seal(key, *known))
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
    return known if sealed else None


def _seal(key: bytes, last: int, seal: bytes) -> str:
    return seal_head(key, Head(0, b"file", last, seal)).hex()
