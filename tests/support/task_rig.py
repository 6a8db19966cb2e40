"""Runs asynchronous tasks over a database, without workers: the test puts their events."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from bitinglip import errors
from bitinglip.db.database import Database
from bitinglip.disk_space import DiskSpace
from bitinglip.gateways.owner import ALONE
from bitinglip.scheduling.event_log import EventLog
from bitinglip.scheduling.job import Job
from bitinglip.tasks.store import TaskStore
from bitinglip.tasks.tasks import Finish, Tasks
from bitinglip.wire.response import inference_response
from tests.support.jobs import text_job
from workers import protocol


class FakeDispatcher:
    """Simulates a dispatcher without workers: the test puts the events."""

    def __init__(self) -> None:
        self.open_now: dict[str, EventLog] = {}
        self.ended: dict[str, EventLog] = {}
        self.refuse: errors.BitingLipError | None = None
        self.discarded: list[Job] = []
        self.admitted = False  #: whether the last job was, by an earlier run
        self.recorded: list[str] = []  #: tasks whose end was in the database

    async def reserve(self, _job: Job) -> None:
        """Hold nothing: no gateways share limits here."""

    @contextmanager
    def open(self, job: Job, *, admitted: bool = False, held: object = None) -> Iterator[EventLog]:
        assert held is None
        self.admitted = admitted
        if self.refuse:
            raise self.refuse
        event_log = self.open_now[job.id] = EventLog(job)
        try:
            yield event_log
        finally:
            self.ended[job.id] = self.open_now.pop(job.id)

    def cancel(self, job_id: str) -> None:
        self.open_now[job_id].put(protocol.Cancelled(id=job_id))

    def find(self, job_id: str) -> EventLog | None:
        return {**self.ended, **self.open_now}.get(job_id)

    def record(self, job_id: str) -> None:
        self.recorded.append(job_id)

    def event_logs(self) -> list[EventLog]:
        return [*self.open_now.values(), *self.ended.values()]


def using(tmp_path: Path, act: Callable[[Database], Awaitable[None]]) -> None:
    async def run() -> None:
        db = await Database.open(tmp_path / "bitinglip.db")
        try:
            async with asyncio.timeout(60):
                await act(db)
        finally:
            await db.close()

    asyncio.run(run())


async def made_nothing(_event_log: EventLog) -> None:
    """Make no files, as a text job does."""


def tasks_of(
    db: Database, dispatcher: FakeDispatcher, owner: str = ALONE, finish: Finish = made_nothing
) -> Tasks:
    return Tasks(
        rows_of(db, owner=owner),
        cast("Any", dispatcher),
        finish=finish,
        discard_uploads=dispatcher.discarded.append,
        retention=60,
    )


def rows_of(
    db: Database, retention: float = 60, max_bytes: int = 10**6, owner: str = ALONE
) -> TaskStore:
    kept: dict[str, Any] = {
        "retention": retention,
        "max_bytes": max_bytes,
        "space": DiskSpace(Path(), 0),
    }
    return TaskStore(db, inference_response, **kept, owner=owner)


def job(**more: Any) -> Job:
    return text_job(**more)


def done(event_log: EventLog) -> None:
    event_log.put(protocol.Started(id=event_log.job.id))
    final = protocol.TextDone(
        id=event_log.job.id,
        choices=(protocol.TextChoice(text="t", finish_reason="stop"),),
        prompt_tokens=1,
        completion_tokens=1,
    )
    event_log.put(final)
