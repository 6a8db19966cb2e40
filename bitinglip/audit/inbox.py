"""Takes entries of commands that work on a home's files while the server has the database.

Each is a file in the home's folder ``audit/``, sealed as the rows of the log are, until the server,
or the next command that opens the database, enters it in the log.
"""

import hmac
import json
import secrets
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import structlog

from bitinglip.audit.entry import Action, Actor, Entry
from bitinglip.private_files import replace_private

log = structlog.get_logger(__name__)

_AT_ONCE = 100  #: files that one call reads
_LARGEST = 65_536  #: bytes of a file


def put(folder: Path, key: bytes, entry: Entry) -> None:
    """Leave an entry, on the disk when this returns. Raises OSError."""
    folder.mkdir(mode=0o700, exist_ok=True)
    name = f"{entry.at}-{secrets.token_hex(4)}"
    columns = entry.columns()
    values = {
        **{field: columns[field] for field in ("at", "action", "target", "outcome")},
        "actor": asdict(replace(entry.actor, request_id=name)),
        "before": columns["before"],
        "after": columns["after"],
    }
    text = json.dumps(values)
    data = json.dumps({"entry": text, "seal": _seal(key, text)}).encode()
    replace_private(folder / f"{name}.json", data)


def take(folder: Path, key: bytes) -> list[tuple[Path, Entry]]:
    """Read the entries that lie there, the oldest first. What is none of ours is removed.

    Raises OSError for a file that cannot be read, such as another user's.
    """
    return list(_entries(folder, key)) if folder.is_dir() else []


def _entries(folder: Path, key: bytes) -> Iterator[tuple[Path, Entry]]:
    for path in sorted(folder.glob("*.json"))[:_AT_ONCE]:
        try:
            if path.is_symlink() or path.stat().st_size > _LARGEST:
                raise ValueError("no file of ours")
            found = json.loads(path.read_bytes())
            if not hmac.compare_digest(str(found["seal"]), _seal(key, found["entry"])):
                raise ValueError("its seal is wrong")
            yield path, _entry(json.loads(found["entry"]))
        except FileNotFoundError:
            continue
        except (ValueError, TypeError, KeyError) as error:
            log.warning("a file that is no audit entry was removed", name=path.name, reason=error)
            path.unlink(missing_ok=True)


def _entry(values: dict[str, Any]) -> Entry:
    return Entry(
        Action(values["action"]),
        Actor(**values["actor"]),
        values["target"],
        values["outcome"],
        before=values["before"] and json.loads(values["before"]),
        after=values["after"] and json.loads(values["after"]),
        at=values["at"],
    )


def _seal(key: bytes, text: str) -> str:
    return hmac.digest(key, b"inbox\0" + text.encode(), "sha256").hex()
