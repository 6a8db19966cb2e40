"""The store keeps asynchronous tasks in the database; each state is written once."""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import msgspec
from sqlalchemy import ColumnElement
from sqlalchemy.orm import QueryableAttribute, defer
from sqlmodel import col, delete, func, select, update

from bitinglip import errors
from bitinglip.db.database import Database
from bitinglip.db.dialects import without
from bitinglip.db.fair_share import shrink
from bitinglip.db.retention import Retention
from bitinglip.db.tables import StoredTask
from bitinglip.disk_space import DiskSpace
from bitinglip.gateways.owner import ALONE, claimable, ownerless
from bitinglip.scheduling.event_log import EventLog, error_of
from bitinglip.scheduling.job import Job
from workers import protocol

_ROW_BYTES = 500  #: of the other columns and the indexes, roughly
_LARGE = (StoredTask.request, StoredTask.result)  #: columns that may hold megabytes
OPEN = ("queued", "running")  #: what a row says until its task has ended

#: an ended job's answer, as clients get it
Describe = Callable[[EventLog], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task has an ``event_log`` while it is in memory, else the ``answer`` of its row."""

    id: str
    key_id: str
    kind: str
    model: str
    status: str
    created_at: datetime
    completed_at: datetime | None = None
    event_log: EventLog | None = None
    answer: dict[str, Any] | None = None
    error: errors.BitingLipError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """A list holds the tasks that match; None matches any."""

    kinds: Collection[str]
    key_id: str | None = None
    status: str | None = None
    model: str | None = None
    models: Collection[str] | None = None

    def matches(self, task: Task) -> bool:
        return (
            task.kind in self.kinds
            and self.key_id in (None, task.key_id)
            and self.status in (None, task.status)
            and self.model in (None, task.model)
            and (self.models is None or task.model in self.models)
        )


def row_of(job: Job, owner: str = ALONE) -> StoredTask:
    """Make the row of a waiting job."""
    request = msgspec.msgpack.encode(job)
    return StoredTask(
        id=job.id,
        key_id=job.key_id,
        kind=job.kind,
        model=job.model,
        state="queued",
        request=request,
        bytes=_ROW_BYTES + len(request),
        created_at=job.created_at,
        gateway=owner,
    )


def job_of(row: StoredTask) -> Job:
    """Read the job of a row. Raises msgspec.DecodeError if another version wrote it."""
    return msgspec.msgpack.decode(row.request or b"", type=Job)


def _task_of(row: StoredTask, answer: dict[str, Any] | None) -> Task:
    return Task(
        id=row.id,
        key_id=row.key_id,
        kind=row.kind,
        model=row.model,
        status=row.state,
        created_at=row.created_at,
        completed_at=row.completed_at,
        answer=answer,
        error=errors.from_code(**row.error) if row.error else None,
    )


class TaskStore:
    """Reads and writes the table of tasks; it hides those that ended ``retention`` seconds ago."""

    def __init__(
        self,
        db: Database,
        describe: Describe,
        *,
        retention: float,
        max_bytes: int,
        space: DiskSpace,
        owner: str = ALONE,
    ) -> None:
        """``max_bytes``: what ended tasks may hold in the database. ``owner``: this server's name
        among those that share it."""
        self._db = db
        self._owner = owner
        self._max_bytes = max_bytes
        self._space = space
        self._describe = describe
        self._retention = Retention(retention)

    async def add(self, job: Job) -> None:
        """Write a task that waits. Raises DiskFull or DatabaseUnavailable."""
        row = row_of(job, self._owner)
        await asyncio.to_thread(self._space.check, row.bytes)
        async with self._db.write() as session:
            session.add(row)

    async def begin(self, job: Job) -> bool:
        """Note that work on it has begun, so that it is never run from its start again.

        Return False for one that is another server's by now, or is not there any more.
        """
        return await self._change(job.id, state="running", started_at=datetime.now(UTC))

    async def end(self, event_log: EventLog) -> bool:
        """Write a task's final state; a later one changes nothing.

        Return whether it was open, and this server's.
        """
        final, result = event_log.final, self._describe(event_log)
        return await self._change(
            event_log.job.id,
            state=event_log.status,
            request=None,
            result=result,
            bytes=_ROW_BYTES + len(msgspec.json.encode(result)),
            error=_stored_error(error_of(final)) if isinstance(final, protocol.Failed) else None,
            completed_at=event_log.completed_at,
        )

    async def get(self, task_id: str) -> Task | None:
        query = select(StoredTask).where(StoredTask.id == task_id, self._present())
        async with self._db.read() as session:
            row = (await session.scalars(query)).first()
        return _task_of(row, row.result) if row else None

    async def count(self, wanted: Filter, *, excluding: Collection[str]) -> int:
        """Count the matching tasks whose ids are not among ``excluding``."""
        query = select(func.count()).select_from(StoredTask).where(*self._where(wanted, excluding))
        async with self._db.read() as session:
            return (await session.scalars(query)).one()

    async def page(
        self, wanted: Filter, *, excluding: Collection[str], limit: int, offset: int
    ) -> list[Task]:
        """Return one page of them, the newest first, without results: each may hold megabytes."""
        newest = (col(StoredTask.created_at).desc(), col(StoredTask.id).desc())
        large = (defer(cast("QueryableAttribute[Any]", each), raiseload=True) for each in _LARGE)
        async with self._db.read() as session:
            rest = without(session, col(StoredTask.result), "result")
            query = (
                select(StoredTask, rest)
                .options(*large)
                .where(*self._where(wanted, excluding))
                .order_by(*newest)
            )
            rows = await session.execute(query.limit(limit).offset(offset))
            return [_task_of(row, answer) for row, answer in rows]

    async def recover(self) -> list[Job]:
        """Claim the tasks that this server left open or that have no owner; see ``take_up``."""
        return await self._take(claimable(StoredTask.gateway, self._owner))

    async def take_up(self) -> list[Job]:
        """Take up what a server left open that has ended, each task once.

        Return the jobs that had not begun; fail those that had, end those that were to be
        cancelled. Raises DiskFull or DatabaseUnavailable.
        """
        left = ownerless(StoredTask.gateway, self._owner)
        async with self._db.read() as session:
            found = select(col(StoredTask.id)).where(left, self._open()).limit(1)
            if (await session.scalars(found)).first() is None:
                return []
        return await self._take(left)

    async def _take(self, which: ColumnElement[bool]) -> list[Job]:
        again: list[Job] = []
        async with self._db.write() as session:
            query = select(StoredTask).where(which, self._open())
            for row in await session.scalars(query.order_by("created_at", "id")):
                row.gateway = self._owner
                if row.state == "queued" and not row.cancel_asked and (job := _readable(row)):
                    again.append(job)
                    continue
                row.state = "cancelled" if row.cancel_asked else "failed"
                if not row.cancel_asked:
                    row.error = _stored_error(_LOST if row.started_at else _UNREADABLE)
                row.request, row.completed_at = None, datetime.now(UTC)
        return again

    async def ask_cancel(self, task_id: str) -> None:
        """Have the server that owns a task cancel it. Raises DiskFull or DatabaseUnavailable."""
        async with self._db.write() as session:
            asked = update(StoredTask).where(col(StoredTask.id) == task_id, self._open())
            await session.execute(asked.values(cancel_asked=True))

    async def to_cancel(self) -> list[str]:
        """Return this server's tasks that others were asked to cancel."""
        mine = (col(StoredTask.gateway) == self._owner, col(StoredTask.cancel_asked))
        async with self._db.read() as session:
            found = await session.scalars(select(col(StoredTask.id)).where(*mine, self._open()))
            return list(found)

    async def is_own(self, task_id: str) -> bool:
        """Return whether a task is this server's still. Raises DatabaseUnavailable."""
        if self._owner == ALONE:
            return True
        mine = (col(StoredTask.id) == task_id, col(StoredTask.gateway) == self._owner)
        async with self._db.read() as session:
            found = await session.scalars(select(col(StoredTask.id)).where(*mine))
            return found.first() is not None

    async def release(self, task_ids: Collection[str]) -> None:
        """Leave tasks that have not begun to other servers. Raises DatabaseUnavailable."""
        waits = (col(StoredTask.gateway) == self._owner, col(StoredTask.state) == "queued")
        these = update(StoredTask).where(col(StoredTask.id).in_(task_ids), *waits)
        async with self._db.write() as session:
            await session.execute(these.values(gateway=ALONE))

    async def open_ids(self, *, own: bool) -> set[str]:
        """Return the tasks that have not ended: this server's, or those of others."""
        mine = col(StoredTask.gateway) == self._owner
        query = select(col(StoredTask.id)).where(mine if own else ~mine, self._open())
        async with self._db.read() as session:
            return set(await session.scalars(query))

    @staticmethod
    def _open() -> ColumnElement[bool]:
        # The time of the end has an index, whose part of open tasks is small.
        return col(StoredTask.completed_at).is_(None) & col(StoredTask.state).in_(OPEN)

    async def expire(self) -> None:
        """Remove ended tasks that are too old, or hold too much."""
        async with self._db.write() as session:
            expired = col(StoredTask.completed_at) < self._retention.oldest()
            await session.execute(delete(StoredTask).where(expired))
            await shrink(session, StoredTask, StoredTask.completed_at, self._max_bytes)
        await self._db.shrink()

    async def _change(self, task_id: str, **values: Any) -> bool:
        """Change a row that is open, and this server's; return whether there was one."""
        # It is another's where this server was taken for dead.
        own = col(StoredTask.gateway) == self._owner
        still_open = (col(StoredTask.id) == task_id, own, self._open())
        change = update(StoredTask).where(*still_open).values(**values)
        async with self._db.write() as session:
            changed = await session.scalars(change.returning(col(StoredTask.id)))
            return changed.first() is not None

    def _where(self, wanted: Filter, excluding: Collection[str]) -> list[ColumnElement[bool]]:
        where = [
            self._present(),
            col(StoredTask.kind).in_(wanted.kinds),
            col(StoredTask.id).not_in(excluding),
        ]
        if wanted.models is not None:
            where.append(col(StoredTask.model).in_(wanted.models))
        columns = {"key_id": wanted.key_id, "model": wanted.model, "state": wanted.status}
        named = {name: value for name, value in columns.items() if value is not None}
        return where + [col(getattr(StoredTask, name)) == value for name, value in named.items()]

    def _present(self) -> ColumnElement[bool]:
        completed_at = col(StoredTask.completed_at)
        return completed_at.is_(None) | (completed_at >= self._retention.oldest())


_LOST = errors.ShuttingDown("The server was restarted while it ran this task.")
_UNREADABLE = errors.InternalError("The server was updated; it cannot run this task any more.")


def _readable(row: StoredTask) -> Job | None:
    try:
        return job_of(row)
    except msgspec.DecodeError:
        return None


def _stored_error(error: errors.BitingLipError) -> dict[str, Any]:
    """Store an error so that ``errors.from_code`` can restore it."""
    return {
        "code": errors.answer(error).code,
        "message": error.message,
        "param": error.param,
        "details": error.details,
    }
