"""Responses are kept in the database: what they were made from, and how they ended.

A response that its client was told of is on the disk. One that runs in the background has its row
before its task is accepted, and its end before the task's.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, exists, literal
from sqlmodel import col, delete, func, select, update

from bitinglip import errors
from bitinglip.db.database import Database
from bitinglip.db.fair_share import shrink
from bitinglip.db.retention import Retention
from bitinglip.db.tables import StoredResponse, StoredTask
from bitinglip.disk_space import DiskSpace
from bitinglip.gateways.owner import ALONE
from bitinglip.scheduling.event_log import EventLog

OPEN = ("queued", "in_progress")  #: states of a response that has not ended
CLEAN_SECONDS = 60.0  #: between two looks for responses that are too old
_ROW_BYTES = 500  #: of the other columns and the index, roughly
MOST_TURNS = 1000  #: of a conversation: a response and those that it continues
MOST_BYTES = 16 << 20  #: of all these turns; hardly any context holds so much

#: an item or a response, as JSON
JsonObject = dict[str, Any]
#: describes a background response that has ended, by its row's response
Describe = Callable[[Mapping[str, Any], EventLog], JsonObject]


class KeptResponse:
    """Holds a response as it is kept; its large parts are read when they are asked for."""

    def __init__(self, row: StoredResponse) -> None:
        self.id = row.id
        self.key_id = row.key_id
        self.model = row.model
        self.status = row.status
        self.previous_id = row.previous_id
        self.completed_at = row.completed_at
        self.size = row.bytes
        self._row = row

    @cached_property
    def input(self) -> list[JsonObject]:
        """Return the items that it was made from, without those of the responses before it."""
        items: list[JsonObject] = msgspec.json.decode(self._row.input)
        return items

    @cached_property
    def response(self) -> JsonObject:
        response: JsonObject = msgspec.json.decode(self._row.response)
        return response

    def items(self) -> list[JsonObject]:
        """Return its input and its output, which are read again: not for the event loop."""
        return [*self.input, *self.response["output"]]


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
        owner: str = ALONE,
    ) -> None:
        """``max_bytes``: what ended responses may hold in the database. ``owner``: this server's
        name among those that share it."""
        self._db = db
        self._owner = owner
        self._describe = describe
        self._retention = Retention(retention)
        self._max_bytes = max_bytes
        self._space = space

    async def check_space(self, items: Sequence[JsonObject]) -> None:
        """Raise DiskFull where a response could not be kept, before it is made."""
        await asyncio.to_thread(self._space.check, len(msgspec.json.encode(items)))

    async def add(
        self,
        key_id: str,
        items: list[JsonObject],
        response: JsonObject,
        *,
        previous_id: str | None = None,
    ) -> None:
        """Write a response, ended or not. Raises DiskFull or DatabaseUnavailable."""
        ended = response["status"] not in OPEN
        made_from, told = msgspec.json.encode(items), msgspec.json.encode(response)
        row = StoredResponse(
            id=response["id"],
            key_id=key_id,
            model=response["model"],
            previous_id=previous_id,
            status=response["status"],
            input=made_from,
            response=told,
            bytes=_ROW_BYTES + len(made_from) + len(told),
            created_at=datetime.fromtimestamp(response["created_at"], UTC),
            completed_at=datetime.now(UTC) if ended else None,
        )
        async with self._db.write() as session:
            session.add(row)

    async def finish(self, event_log: EventLog) -> None:
        """Write the end of a background response, if this job makes one.

        One that another server makes by now is left to it. Raises DiskFull or DatabaseUnavailable.
        """
        response_id = event_log.job.response_id
        kept = None if response_id is None else await self._find(response_id)
        if kept is None or kept.status not in OPEN:
            return
        response = self._describe(kept.response, event_log)
        before, told = msgspec.json.encode(kept.response), msgspec.json.encode(response)
        async with self._db.write() as session:
            await session.execute(
                update(StoredResponse)
                .where(col(StoredResponse.id) == kept.id, *self._may_end(event_log.job.id))
                .values(
                    status=response["status"],
                    response=told,
                    bytes=kept.size - len(before) + len(told),
                    completed_at=datetime.now(UTC),
                )
            )

    def _may_end(self, task_id: str) -> list[ColumnElement[bool]]:
        """Return what a row must be for this server to end it: open, and of a task of its own."""
        is_open = col(StoredResponse.status).in_(OPEN)
        if self._owner == ALONE:
            return [is_open]
        mine = (col(StoredTask.id) == task_id, col(StoredTask.gateway) == self._owner)
        return [is_open, exists(select(col(StoredTask.id)).where(*mine))]

    async def get(self, response_id: str) -> KeptResponse:
        """Return a response. Raises NotFound."""
        kept = await self._find(response_id)
        if kept is None:
            raise missing()
        return kept

    async def delete(self, response_id: str, task_id: str) -> None:
        """Remove a response, and the task that has made it: its result holds the same text."""
        async with self._db.write() as session:
            own = delete(StoredResponse).where(col(StoredResponse.id) == response_id)
            await session.execute(own)
            await session.execute(delete(StoredTask).where(col(StoredTask.id) == task_id))

    async def turns(self, response_id: str, key_id: str | None) -> list[KeptResponse]:
        """Return a response and those before it, the first one first.

        ``key_id``: whose they must be; None is any key's. Raises InvalidRequest where one is not
        there any more or has not ended well, ContextLengthExceeded where they hold too much.
        """
        table = StoredResponse
        own = (col(table.id), col(table.previous_id), col(table.bytes))
        first = select(*own, literal(1).label("turn")).where(col(table.id) == response_id)
        chain = first.cte("chain", recursive=True)
        before = (
            select(*own, chain.c.turn + 1)
            .join(chain, col(table.id) == chain.c.previous_id)
            .where(chain.c.turn <= MOST_TURNS)
        )
        chain = chain.union_all(before)
        async with self._db.read() as session:
            sums = select(func.count(), func.coalesce(func.sum(chain.c.bytes), 0))
            count, size = (await session.execute(sums.select_from(chain))).one()
            if count > MOST_TURNS or size > MOST_BYTES:
                raise too_much("previous_response_id")
            rows = (
                await session.scalars(select(table).join(chain, col(table.id) == chain.c.id))
            ).all()
        return self._in_order(response_id, {row.id: KeptResponse(row) for row in rows}, key_id)

    def _in_order(
        self, response_id: str, rows: Mapping[str, KeptResponse], key_id: str | None
    ) -> list[KeptResponse]:
        turns: list[KeptResponse] = []
        at: str | None = response_id
        while at is not None:
            row = rows.get(at)
            if row is None or key_id not in (None, row.key_id) or self._expired(row):
                raise _not_previous("does not exist, or has expired")
            if row.status not in ("completed", "incomplete"):
                raise _not_previous("has not ended, was cancelled, or has failed")
            turns.append(row)
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

    async def _find(self, response_id: str) -> KeptResponse | None:
        async with self._db.read() as session:
            row = await session.get(StoredResponse, response_id)
        found = None if row is None else KeptResponse(row)
        return None if found is None or self._expired(found) else found

    def _expired(self, row: KeptResponse) -> bool:
        return row.completed_at is not None and row.completed_at < self._retention.oldest()


def too_much(param: str) -> errors.ContextLengthExceeded:
    return errors.ContextLengthExceeded(
        "The prompt is too long: the responses that it refers to hold too much.", param=param
    )


def missing() -> errors.NotFound:
    return errors.NotFound("There is no response with this id; responses expire.")


def _not_previous(why: str) -> errors.InvalidRequest:
    return errors.InvalidRequest(
        f"The response that 'previous_response_id' names {why}.", param="previous_response_id"
    )
