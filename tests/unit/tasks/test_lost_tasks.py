"""Tasks that another server has taken up, since this one was taken for dead, are let go of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitinglip.db.database import Database
from bitinglip.disk_space import DiskSpace
from bitinglip.scheduling.event_log import EventLog
from bitinglip.tasks.responses import Responses
from tests.support.task_rig import FakeDispatcher, done, job, rows_of, tasks_of, using
from workers import protocol


def test_task_that_another_server_took_up_is_dropped_as_it_begins(tmp_path: Path) -> None:
    """This server stood still for longer than its lease, or was new among the others."""

    async def act(db: Database) -> None:
        dispatcher = FakeDispatcher()
        tasks = tasks_of(db, dispatcher, owner="stopped")
        task = await tasks.accept(job())
        (taken,) = await rows_of(db, owner="other").take_up()
        event_log = dispatcher.open_now[task.id]
        event_log.put(protocol.Started(id=taken.id))
        await event_log.end()
        assert event_log.status == "cancelled"
        assert await tasks.finished(task.id)
        assert (dispatcher.recorded, dispatcher.discarded) == ([], [])
        stored = await rows_of(db).get(task.id)
        assert stored is not None
        assert stored.status == "queued"

    using(tmp_path, act)


def test_task_that_another_server_took_up_as_it_ended_keeps_its_uploads(tmp_path: Path) -> None:
    async def act(db: Database) -> None:
        async def finish(_event_log: EventLog) -> None:
            assert len(await rows_of(db, owner="other").take_up()) == 1

        dispatcher = FakeDispatcher()
        tasks = tasks_of(db, dispatcher, "stopped", finish)
        task = await tasks.accept(job())
        dispatcher.cancel(task.id)
        assert await tasks.finished(task.id)
        assert (dispatcher.recorded, dispatcher.discarded) == ([], [])
        stored = await rows_of(db).get(task.id)
        assert stored is not None
        assert stored.status == "queued"

    using(tmp_path, act)


def test_response_of_a_task_that_another_server_took_up_is_ended_there(tmp_path: Path) -> None:
    async def act(db: Database) -> None:
        kept: dict[str, Any] = {"retention": 60, "max_bytes": 10**6}
        kept["space"] = DiskSpace(tmp_path, 0)
        late, other = (Responses(db, described, **kept, owner=name) for name in ("late", "other"))
        response = {"id": "resp_1", "model": "m", "status": "queued", "output": [], "created_at": 1}
        await other.add("k", [], response)
        task = job(response_id="resp_1")
        await rows_of(db, owner="other").add(task)
        event_log = EventLog(task)
        for each, status in ((late, "queued"), (other, "completed")):
            await each.finish(event_log)
            assert (await each.get("resp_1")).status == status

    using(tmp_path, act)


def described(response: Mapping[str, Any], _event_log: EventLog) -> dict[str, Any]:
    return {**response, "status": "completed"}


def test_task_of_this_server_is_begun_and_ended_here(tmp_path: Path) -> None:
    async def act(db: Database) -> None:
        dispatcher = FakeDispatcher()
        tasks = tasks_of(db, dispatcher, "one")
        task = await tasks.accept(job())
        done(dispatcher.open_now[task.id])
        assert await tasks.finished(task.id)
        assert (await tasks.get(task.id)).status == "completed"
        assert dispatcher.recorded == [task.id]

    using(tmp_path, act)
