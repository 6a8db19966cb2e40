"""Chains the audit log: each row is sealed together with the seal of the row before it.

A seal is an HMAC-SHA256 under a key that is derived from the home's secret.key: a person with the
database alone can neither change a row, nor leave one out, nor add one. The head, which is sealed
too, says where the log begins and ends, so that a cut at either end is found.
"""

import hmac
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bitinglip.audit.entry import Action
from bitinglip.db.backend import Select
from bitinglip.db.sqlite import snapshot

#: what the home's secret is derived for, to make the key of the seals
SEALING = "audit log"
NOTHING = bytes(32)  #: stands for the seal before the first row

#: all columns of a row but its seal, in the order in which they are sealed
COLUMNS = (
    "seq",
    "at",
    "actor",
    "actor_name",
    "token",
    "action",
    "target",
    "outcome",
    "address",
    "request_id",
    "user_agent",
    "before",
    "after",
)
_QUOTED = ", ".join(f'"{name}"' for name in COLUMNS)
_ROWS = f"SELECT {_QUOTED}, seal FROM audit_log ORDER BY seq"
_HEAD = "SELECT first, anchor, last, seal, head_seal FROM audit_head WHERE id = 1"
_ACTION, _TARGET = COLUMNS.index("action"), COLUMNS.index("target")
_AT_ONCE = 100  #: rows between two pauses, a millisecond's work
_PAUSE = 0.0005  #: seconds in which other threads run


@dataclass(frozen=True, slots=True)
class Head:
    """Says where the log begins and ends."""

    first: int = 1  #: the number of the oldest row that is kept
    anchor: bytes = NOTHING  #: the seal of the row before it
    last: int = 0  #: the number of the newest row
    seal: bytes = NOTHING  #: the seal of that row


class Known(NamedTuple):
    """Tells where the log ended at some time, as is known from elsewhere."""

    last: int
    seal: bytes


class Verdict(NamedTuple):
    """Tells what a check of the log has found."""

    valid: bool
    rows: int
    first_bad: int | None  #: the number of the first row that is changed, missing or forged
    reason: str = ""


def seal_row(key: bytes, before: bytes, values: Sequence[Any]) -> bytes:
    """Return the seal of a row with these values, after a row with the seal ``before``."""
    text = json.dumps(values, separators=(",", ":"), default=repr)
    return hmac.digest(key, b"row\0" + before + text.encode(), "sha256")


def seal_head(key: bytes, head: Head) -> bytes:
    """Return the seal of the head itself."""
    numbers = b"head\0%d\0%d\0" % (head.first, head.last)
    return hmac.digest(key, numbers + head.anchor + head.seal, "sha256")


def verify(select: Select, key: bytes, known: Known | None = None) -> Verdict:
    """Check the log in one state of a database; it takes 10 us a row.

    ``known`` must have been read before.
    """
    head = list(select(_HEAD))
    ((rows,),) = select("SELECT count(*) FROM audit_log")
    bad, reason = _first_bad(select(_ROWS), head[0] if head else None, key, known)
    return Verdict(bad is None, rows, bad, reason)


def verify_file(path: Path, key: bytes) -> Verdict:
    """Check the log in a file of SQLite. Raises sqlite3.Error for one that cannot be read."""
    with snapshot(path) as select:
        return verify(select, key)


def _first_bad(
    rows: Iterable[Sequence[Any]],
    found: Sequence[Any] | None,
    key: bytes,
    known: Known | None,
) -> tuple[int | None, str]:
    head, sealed = read_head(found, key)
    before, expected, marked = head.anchor, head.first, None
    for count, row in enumerate(rows):
        *values, seal = row
        if values[0] != expected:
            return expected, "it is missing"
        if not _equal(seal, seal_row(key, before, values)):
            return expected, "it was changed, added or put elsewhere"
        if known is not None and expected == known.last and not _equal(seal, known.seal):
            return expected, "the database was replaced by an older copy, which went on"
        if values[_ACTION] == Action.AUDIT_BROKEN and marked is None:
            marked = int(values[_TARGET])
        before, expected = seal, expected + 1
        if count % _AT_ONCE == _AT_ONCE - 1:
            time.sleep(_PAUSE)
    empty = found is None and expected == head.first
    if not sealed and not empty:
        return expected, "the record of the log's end was changed"
    if sealed and (expected - 1 != head.last or not _equal(before, head.seal)):
        return min(expected, head.last + 1), "rows at the end are missing"
    if known is not None and known.last >= expected:
        return expected, "the database was replaced by an older copy"
    return marked, "" if marked is None else "the log was changed there, as a later entry tells"


def bad_among(
    rows: Iterable[Sequence[Any]], key: bytes, before: bytes, expected: int
) -> int | None:
    """Return the first of the oldest rows, each with its seal, that is changed or missing."""
    for row in rows:
        *values, seal = row
        if values[0] != expected or not _equal(seal, seal_row(key, before, values)):
            return expected
        before, expected = seal, expected + 1
    return None


def read_head(found: Sequence[Any] | None, key: bytes) -> tuple[Head, bool]:
    """Return the head from its row, and whether it is as we wrote it. An empty log has none."""
    if found is None:
        return Head(), False
    first, anchor, last, seal, head_seal = found
    typed = isinstance(first, int) and isinstance(last, int)
    if not (typed and isinstance(anchor, bytes) and isinstance(seal, bytes)):
        return Head(), False
    head = Head(first, anchor, last, seal)
    return head, _equal(head_seal, seal_head(key, head))


def _equal(found: object, expected: bytes) -> bool:
    return isinstance(found, bytes) and hmac.compare_digest(found, expected)
