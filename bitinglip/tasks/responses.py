"""Responses are kept in the database: what they were made from, and how they ended.

A response that its client was told of is on the disk. One that runs in the background has its row
before its task is accepted, and its end before the task's.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import literal
from sqlmodel import col, delete, func, select, update

from bitinglip import errors
from bitinglip.db.database import Database
from bitinglip.db.fair_share import shrink
from bitinglip.db.retention import Retention
from bitinglip.db.tables import StoredResponse, StoredTask
from bitinglip.disk_space import DiskSpace
from bitinglip.scheduling.event_log import EventLog

OPEN = ("queued", "in_progress")  #: states of a response that has not ended
CLEAN_SECONDS = 60.0  #: between two looks for responses that are too old
_ROW_BYTES = 500  #: of the other columns and the index, roughly
_MOST_TURNS = 1000  #: that are gone back from one response to the next
_MOST_BYTES = 64 << 20  #: of all of them: no model reads so much

#: an item or a response, as JSON
Shown = dict[str, Any]
#: describes a background response that has ended, by its row's response
Describe = Callable[[Mapping[str, Any], EventLog], Shown]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What a response was made from, without the turns before it, and what it consists of."""

    response_id: str
    model: str
    input: list[Shown]
    output: list[Shown]


class Responses:
    """Keeps responses for ``retention`` seconds after their ends."""

    def __init__(
        self,
        db: Database,
        describe: Describe,
        *,
        retention: float,
        max_bytes: int,
        space: DiskSpace,
    ) -> None:
        """``max_bytes``: what ended responses may hold in the database."""
        self._db = db
        self._describe = describe
        self._retention = Retention(retention)
        self._max_bytes = max_bytes
        self._space = space

    async def check_space(self, items: Sequence[Shown]) -> None:
        """Raise DiskFull where a response could not be kept, before it is made."""
        await asyncio.to_thread(self._space.check, _size(items))

    async def add(
        self,
        key_id: str,
        items: list[Shown],
        response: Shown,
        *,
        previous_id: str | None = None,
    ) -> None:
        """Write a response, ended or not. Raises DiskFull or DatabaseUnavailable."""
        ended = response["status"] not in OPEN
        row = StoredResponse(
            id=response["id"],
            key_id=key_id,
            model=response["model"],
            previous_id=previous_id,
            status=response["status"],
            input=items,
            response=response,
            bytes=_ROW_BYTES + _size(items) + _size(response),
            created_at=datetime.fromtimestamp(response["created_at"], UTC),
            completed_at=datetime.now(UTC) if ended else None,
        )
        async with self._db.write() as session:
            session.add(row)

    async def finish(self, event_log: EventLog) -> None:
        """Write the end of a background response, if this job makes one.

        Raises DiskFull or DatabaseUnavailable.
        """
        response_id = event_log.job.response_id
        row = None if response_id is None else await self._row(response_id)
        if row is None or row.status not in OPEN:
            return
        response = self._describe(row.response, event_log)
        size = _ROW_BYTES + _size(row.input) + _size(response)
        async with self._db.write() as session:
            await session.execute(
                update(StoredResponse)
                .where(col(StoredResponse.id) == row.id)
                .values(
                    status=response["status"],
                    response=response,
                    bytes=size,
                    completed_at=datetime.now(UTC),
                )
            )

    async def get(self, response_id: str) -> StoredResponse:
        """Return a response's row. Raises NotFound."""
        row = await self._row(response_id)
        if row is None:
            raise missing()
        return row

    async def delete(self, response_id: str, task_id: str) -> None:
        """Remove a response, and the task that has made it: its result holds the same text."""
        async with self._db.write() as session:
            own = delete(StoredResponse).where(col(StoredResponse.id) == response_id)
            await session.execute(own)
            await session.execute(delete(StoredTask).where(col(StoredTask.id) == task_id))

    async def turns(self, response_id: str, key_id: str | None) -> list[Turn]:
        """Return a response and those before it, the first one first.

        ``key_id``: whose they must be; None is anybody. Raises InvalidRequest where one is not
        there any more or has not ended well, ContextLengthExceeded where they hold too much.
        """
        table = StoredResponse
        own = (col(table.id), col(table.previous_id), col(table.bytes))
        first = select(*own, literal(1).label("turn")).where(col(table.id) == response_id)
        chain = first.cte("chain", recursive=True)
        before = (
            select(*own, chain.c.turn + 1)
            .join(chain, col(table.id) == chain.c.previous_id)
            .where(chain.c.turn <= _MOST_TURNS)
        )
        chain = chain.union_all(before)
        async with self._db.read() as session:
            sums = select(func.count(), func.coalesce(func.sum(chain.c.bytes), 0))
            count, size = (await session.execute(sums.select_from(chain))).one()
            if count > _MOST_TURNS or size > _MOST_BYTES:
                raise errors.ContextLengthExceeded(
                    "The prompt is too long: the responses before this one hold too much.",
                    param="previous_response_id",
                )
            rows = (
                await session.scalars(select(table).join(chain, col(table.id) == chain.c.id))
            ).all()
        return self._in_order(response_id, {row.id: row for row in rows}, key_id)

    def _in_order(
        self, response_id: str, rows: Mapping[str, StoredResponse], key_id: str | None
    ) -> list[Turn]:
        turns: list[Turn] = []
        at: str | None = response_id
        while at is not None:
            row = rows.get(at)
            if row is None or key_id not in (None, row.key_id) or self._expired(row):
                raise _not_previous("is not there, or not any more")
            if row.status not in ("completed", "incomplete"):
                raise _not_previous("has not ended, or not well")
            output = row.response["output"]
            turns.append(Turn(response_id=at, model=row.model, input=row.input, output=output))
            at = row.previous_id
        return turns[::-1]

    async def clean(self) -> None:
        """Remove ended responses that are too old, or hold too much.

        Raises DiskFull or DatabaseUnavailable.
        """
        async with self._db.write() as session:
            expired = col(StoredResponse.completed_at) < self._retention.oldest()
            await session.execute(delete(StoredResponse).where(expired))
            await shrink(session, StoredResponse, StoredResponse.completed_at, self._max_bytes)

    async def _row(self, response_id: str) -> StoredResponse | None:
        async with self._db.read() as session:
            row = await session.get(StoredResponse, response_id)
        return None if row is None or self._expired(row) else row

    def _expired(self, row: StoredResponse) -> bool:
        return row.completed_at is not None and row.completed_at < self._retention.oldest()


def missing() -> errors.NotFound:
    return errors.NotFound("There is no response with this id; responses expire.")


def _not_previous(why: str) -> errors.InvalidRequest:
    return errors.InvalidRequest(
        f"The response that 'previous_response_id' names {why}.", param="previous_response_id"
    )


def _size(value: Any) -> int:
    return len(msgspec.json.encode(value))
