"""Owns the tables of the audit log. Rows are added and, from the old end, deleted.

A change in the database brings its entry along in the same transaction (``append``). What happens
outside of it is entered before it is answered (``record``). Entries that no request waits for, and
those that the database could not take, wait in memory (``remember``) for the next ``flush``.
"""

import asyncio
import json
from asyncio import to_thread
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from bitinglip.audit import head_file
from bitinglip.audit.chain import (
    COLUMNS,
    NOTHING,
    Head,
    Known,
    Verdict,
    bad_among,
    read_head,
    seal_head,
    seal_row,
    verify,
)
from bitinglip.audit.entry import Action, Entry
from bitinglip.audit.inbox import take
from bitinglip.audit.often import Often
from bitinglip.audit.query import Filter
from bitinglip.audit.refusals import Refusals
from bitinglip.db.database import Database
from bitinglip.db.dialects import insert as upsert
from bitinglip.db.retention import Retention
from bitinglip.db.tables import AuditHead, AuditRow
from bitinglip.errors import BitingLipError

log = structlog.get_logger(__name__)

DAY = 86_400.0  #: seconds
MOST_WAITING = 1000  #: entries in memory; further ones are counted only
_AT_ONCE = 500  #: rows that one transaction deletes
_SHOWN: Any = [col(getattr(AuditRow, name)) for name in COLUMNS]
_ALL: Any = [*_SHOWN, col(AuditRow.seal)]
_NEWEST: Any = col(AuditRow.seq).desc()
_HEAD_COLUMNS = ("first", "anchor", "last", "seal", "head_seal")


class AuditLog:
    """Adds entries to the log of a database, shows and checks them, deletes the oldest."""

    def __init__(
        self,
        db: Database,
        key: bytes,
        *,
        folder: Path | None = None,
        days: float = 365,
        max_entries: int = 1_000_000,
    ) -> None:
        self._db = db
        self._key = key
        self._folder = folder  #: of entries of commands, and of the head's copy
        self._grown = False  #: the head's copy may be behind
        self._retention = Retention(days * DAY)
        self._max_entries = max_entries
        self._waiting: deque[Entry] = deque()
        self._lost = 0  #: entries that found no place in memory
        self.refusals = Refusals(self.remember)
        self.often = Often(self.remember)
        self._flushing = asyncio.Lock()
        self._checking = asyncio.Lock()

    async def append(self, session: AsyncSession, *entries: Entry) -> None:
        """Add entries in a transaction that writes; they stand or fall with it."""
        self._grown = True
        head = await self._head(session)
        rows = []
        for entry in entries:
            head, row = self._sealed(head, entry)
            rows.append(row)
        await session.execute(insert(AuditRow), rows)
        await self._set_head(session, head)

    async def record(self, entry: Entry) -> None:
        """Enter something that has happened outside the database.

        Raises DiskFull or DatabaseUnavailable; the entry is kept in memory then and written later.
        """
        if not self.often.takes(entry):
            return
        try:
            async with self._db.write() as session:
                await self.append(session, entry)
        except BitingLipError:
            self.remember(entry)
            raise

    def remember(self, entry: Entry) -> None:
        """Keep an entry for the next flush; it costs its caller no disk access."""
        if len(self._waiting) < MOST_WAITING:
            self._waiting.append(entry)
        else:
            self._lost += 1

    async def flush(self) -> None:
        """Write the entries in memory, then those that commands have left.

        Raises DiskFull, DatabaseUnavailable or OSError; what could not be written is tried again by
        the next flush.
        """
        self.refusals.tick()
        self.often.tick()
        async with self._flushing:
            waiting, lost = tuple(self._waiting), self._lost
            if lost:
                waiting = (*waiting, Entry(Action.AUDIT_LOST, after={"entries": lost}))
            if waiting:
                async with self._db.write() as session:
                    await self.append(session, *waiting)
                for _ in range(len(waiting) - bool(lost)):
                    self._waiting.popleft()
                self._lost -= lost
            try:
                await self._collect()  # after ours, which a file that cannot be read must not stop
            finally:
                await self._copy_head()

    async def close(self, entry: Entry) -> None:
        """Write the entries in memory and a last one. Raises as ``flush`` does."""
        self.refusals.finish()
        self.often.finish()
        self.remember(entry)
        await self.flush()

    async def _collect(self) -> None:
        """Enter what commands have left, each once, even if its file outlives a crash."""
        if self._folder is None or not (found := await to_thread(take, self._folder, self._key)):
            return
        async with self._db.write() as session:
            for _, entry in found:
                same = col(AuditRow.request_id) == entry.actor.request_id
                query = select(col(AuditRow.seq)).where(col(AuditRow.at) == entry.at, same)
                if (await session.execute(query)).first() is None:
                    await self.append(session, entry)
        await to_thread(_remove, [path for path, _ in found])

    async def _copy_head(self) -> None:
        """Note the log's end beside the database."""
        if self._folder is None or not self._grown:
            return
        self._grown = False
        try:
            await to_thread(head_file.write, self._folder, self._key, await self._checked_head())
        except BaseException:
            self._grown = True
            raise

    async def _checked_head(self) -> Head:
        """Return the head; where the database is older than what was noted, that is entered."""
        assert self._folder is not None
        known = await to_thread(head_file.read, self._folder, self._key)
        async with self._db.write() as session:
            head = await self._head(session)
            if known is not None and not await self._holds(session, head, known):
                log.warning("the database is older than its audit log's head: a restored backup?")
                old, new = {"last": known.last}, {"last": head.last}
                await self.append(session, Entry(Action.AUDIT_ROLLBACK, before=old, after=new))
                head = await self._head(session)
        return head

    async def _holds(self, session: AsyncSession, head: Head, known: Known) -> bool:
        """Return whether the log has the row that is known, or once had it."""
        if known.last < head.first:
            return True
        query = select(col(AuditRow.seal)).where(col(AuditRow.seq) == known.last)
        return bool(await session.scalar(query) == known.seal)

    async def list(
        self, wanted: Filter, *, limit: int, offset: int = 0
    ) -> tuple[list[dict[str, Any]], int]:
        """Return a page of the selected entries, the newest first, and how many there are."""
        shown = wanted.of(select(*_SHOWN)).order_by(_NEWEST).limit(limit).offset(offset)
        async with self._db.read() as session:
            rows = (await session.execute(shown)).all()
            total = await session.scalar(wanted.of(select(func.count()).select_from(AuditRow)))
        return [_shown(row._asdict()) for row in rows], total or 0

    async def last(self, *actions: Action, target: str = "") -> dict[str, Any] | None:
        """Return the newest entry with one of these actions on a target."""
        chosen = col(AuditRow.action).in_(actions), col(AuditRow.target) == target
        query = select(*_SHOWN).where(*chosen).order_by(_NEWEST)
        async with self._db.read() as session:
            row = (await session.execute(query.limit(1))).one_or_none()
        return None if row is None else _shown(row._asdict())

    async def verify(self) -> Verdict:
        """Check every row and both ends, beside the event loop. Raises DatabaseUnavailable."""
        async with self._checking:
            known = None
            if self._folder is not None:
                known = await to_thread(head_file.read, self._folder, self._key)
            return await self._db.in_snapshot(lambda select: verify(select, self._key, known))

    async def prune(self) -> None:
        """Delete the rows that are too old or too many, a part at a time, and enter that.

        Raises DiskFull or DatabaseUnavailable.
        """
        while await self._prune_some():
            pass

    async def _prune_some(self) -> bool:
        oldest = int(self._retention.oldest().timestamp() * 1e6)
        async with self._db.write() as session:
            head = await self._head(session)
            query = select(*_ALL)
            rows = (await session.execute(query.order_by(col(AuditRow.seq)).limit(_AT_ONCE))).all()
            over = head.last - head.first + 1 - self._max_entries
            doomed: list[Any] = []
            for row in rows:
                old = isinstance(row.at, int) and row.at < oldest
                if not old and len(doomed) >= over:
                    break
                doomed.append(row)
            if not doomed:
                return False
            through, anchor = doomed[-1].seq, _bytes(doomed[-1].seal)
            # Who changes a row's time has it deleted; that must not hide the change.
            bad = bad_among(doomed, self._key, head.anchor, head.first)
            await session.execute(delete(AuditRow).where(col(AuditRow.seq) <= through))
            await self._set_head(session, replace(head, first=through + 1, anchor=anchor))
            after = {"entries": len(doomed), "through": through}
            made = [Entry(Action.AUDIT_PRUNE, after=after)]
            if bad is not None:
                made.append(Entry(Action.AUDIT_BROKEN, target=str(bad)))
            await self.append(session, *made)
        return len(doomed) == _AT_ONCE

    async def _head(self, session: AsyncSession) -> Head:
        """Return where the log ends.

        Where others have changed it, that is entered: otherwise our seal on what follows would
        hide it.
        """
        query = select(*(col(getattr(AuditHead, name)) for name in _HEAD_COLUMNS))
        found = (await session.execute(query.where(col(AuditHead.id) == 1))).one_or_none()
        end = select(col(AuditRow.seq), col(AuditRow.seal)).order_by(_NEWEST)
        newest = (await session.execute(end.limit(1))).one_or_none()
        head, sealed = read_head(found, self._key)
        if (sealed and (newest is None or newest.seq <= head.last)) or (
            found is None and newest is None
        ):
            return head
        last = 0 if newest is None else newest.seq
        doubtful = head.last + 1 if sealed else last + 1
        why = "the audit log was changed by another program, or secret.key is another one"
        log.error(why, entry=doubtful)
        seal = NOTHING if newest is None else _bytes(newest.seal)
        head = replace(head, last=last, seal=seal)
        head, row = self._sealed(head, Entry(Action.AUDIT_BROKEN, target=str(doubtful)))
        await session.execute(insert(AuditRow), [row])
        await self._set_head(session, head)
        return head

    def _sealed(self, head: Head, entry: Entry) -> tuple[Head, dict[str, Any]]:
        row = {"seq": head.last + 1, **entry.columns()}
        seal = seal_row(self._key, head.seal, [row[name] for name in COLUMNS])
        return replace(head, last=head.last + 1, seal=seal), {**row, "seal": seal}

    async def _set_head(self, session: AsyncSession, head: Head) -> None:
        values = {
            "first": head.first,
            "anchor": head.anchor,
            "last": head.last,
            "seal": head.seal,
            "head_seal": seal_head(self._key, head),
        }
        statement = upsert(session, AuditHead).values(id=1, **values)
        await session.execute(statement.on_conflict_do_update(index_elements=["id"], set_=values))


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """Return an entry as the API and the command show it."""
    return {
        "entry": row["seq"],
        "at": _moment(row["at"]),
        **{name: row[name] for name in COLUMNS[2:-2]},
        "before": _value(row["before"]),
        "after": _value(row["after"]),
    }


def _moment(at: Any) -> Any:
    try:
        moment = datetime.fromtimestamp(at // 1_000_000, UTC).replace(microsecond=at % 1_000_000)
    except (TypeError, ValueError, OverflowError, OSError):  # another program has written it
        return at
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _bytes(found: object) -> bytes:
    return found if isinstance(found, bytes) else NOTHING


def _value(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except (TypeError, ValueError):
        return text
