"""Tasks and their rows: nothing lost on the way, no end told before it is written."""

import asyncio
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from sqlalchemy import text
from sqlmodel import select

from bitinglip import errors
from bitinglip.access.credentials import Credential
from bitinglip.db.database import Database
from bitinglip.db.tables import StoredTask
from bitinglip.disk_space import DiskSpace
from bitinglip.guard.modes import Modes
from bitinglip.scheduling.event_log import EventLog
from bitinglip.scheduling.job import Job
from bitinglip.scheduling.queue.priority import Priority
from bitinglip.tasks.store import Filter, TaskStore, job_of, row_of
from bitinglip.tasks.tasks import Tasks
from bitinglip.wire.response import inference_response, listed_task
from tests.support.task_rig import (
    FakeDispatcher,
    done,
    job,
    made_nothing,
    rows_of,
    tasks_of,
    using,
)
from workers import protocol

FULL = Job(
    work=protocol.TextJob(
        id="task-full",
        prompt="p",
        messages=(protocol.ChatMessage("user", "hé"),),
        sampling=protocol.Sampling(
            max_tokens=7,
            temperature=0.5,
            top_k=3,
            top_p=0.25,
            min_p=0.125,
            repetition_penalty=1.5,
            presence_penalty=-1.0,
            frequency_penalty=1.0,
            logit_bias={5: -2.5},
            logprobs=2,
            seed=2**64 - 1,
            stop=("a", "b"),
            stop_token_ids=(7,),
            min_tokens=3,
            typical_p=0.5,
            ignore_eos=True,
        ),
        prompts=("p", (1, 2)),
        n=2,
        best_of=3,
        echo=True,
        tools=(protocol.Tool(name="t", parameters={"type": "object"}, strict=True),),
        tool_choice="t",
        parallel_tool_calls=False,
        grammar=protocol.Grammar(kind="regex", source="a*"),
        template_kwargs={"enable_thinking": False},
        continue_final=True,
        generation_prompt=False,
        special_tokens=False,
        count_only=True,
        clip_max_tokens=True,
        prefix_scope="k",
        drop_turns=True,
        trace="00-1-2-01",
        lora=protocol.TextLora("folder"),
        priority=3,
        stream=False,
    ),
    model="m",
    key_id="k",
    timeout=12.5,
    priority=Priority(level=3),
    created_at=datetime(2026, 1, 2, 3, 4, 5, 678901, UTC),
    output="url",
    file_bytes=9,
    seeded=True,
    asynchronous=True,
    response_id="resp_1",
    session="s",
    trace=f"00-{'1' * 32}-{'2' * 16}-01",
    credential=Credential("k", 2, "t"),
    guard=Modes("redact", "block"),
)


def test_row_gives_each_field_of_a_job_back(tmp_path: Path) -> None:
    assert isinstance(FULL.work, protocol.TextJob)
    for message in (FULL, FULL.work, FULL.work.sampling):
        for one in msgspec.structs.fields(message):
            value = getattr(message, one.name)
            assert value != one.default, f"{one.name} is not put to the test"

    async def act(db: Database) -> None:
        async with db.write() as session:
            session.add(row_of(FULL))
        async with db.read() as session:
            assert job_of(await session.get_one(StoredTask, FULL.id)) == FULL

    using(tmp_path, act)


def test_task_end_is_told_once_it_is_written(tmp_path: Path) -> None:
    async def act(db: Database) -> None:
        dispatcher = FakeDispatcher()
        tasks = tasks_of(db, dispatcher)
        task = await tasks.accept(job())
        async with db.write():  # the one writer is busy
            done(dispatcher.open_now[task.id])
            ended = asyncio.create_task(tasks.finished(task.id))
            for _ in range(50):
                await asyncio.sleep(0)
            assert not ended.done()
            assert (await tasks.get(task.id)).status == "queued"
        assert await ended
        assert (await tasks.get(task.id)).status == "completed"
        stored = await rows_of(db).get(task.id)
        assert stored is not None
        assert stored.answer is not None
        assert stored.answer["result"]["text"] == "t"
        async with db.read() as session:
            assert (await session.get_one(StoredTask, task.id)).request is None

    using(tmp_path, act)


def test_task_list_reads_no_results(tmp_path: Path) -> None:
    async def act(db: Database) -> None:
        dispatcher = FakeDispatcher()
        tasks = tasks_of(db, dispatcher)
        task = await tasks.accept(job())
        done(dispatcher.open_now[task.id])
        assert await tasks.finished(task.id)
        waiting = await tasks.accept(job())
        wanted = Filter(kinds=["text"])
        listed = {
            each.id: each
            for each in await rows_of(db).page(wanted, excluding=(), limit=9, offset=0)
        }
        assert set(listed) == {task.id, waiting.id}
        assert listed[waiting.id].answer is None
        answer = listed[task.id].answer
        assert answer is not None
        assert "result" not in answer
        shown = listed_task(listed[task.id], "r")
        assert shown == {**listed_task(await tasks.get(task.id), "r")}
        assert (shown["status"], shown["usage"]["completion_tokens"]) == ("completed", 1)

    using(tmp_path, act)


def test_task_whose_answer_cannot_be_described_ends_all_the_same(tmp_path: Path) -> None:
    async def act(db: Database) -> None:
        dispatcher = FakeDispatcher()
        tasks = tasks_of(db, dispatcher)
        task = await tasks.accept(job())
        event_log = dispatcher.open_now[task.id]
        event_log.put(protocol.ImageDone(id=task.id, images=(), steps=1, scheduler="s"))
        assert await tasks.finished(task.id)
        stored = await rows_of(db).get(task.id)
        assert stored is not None
        assert (stored.status, type(stored.error)) == ("failed", errors.InternalError)

    using(tmp_path, act)


@pytest.mark.sqlite
def test_task_that_is_refused_leaves_nothing_behind(tmp_path: Path) -> None:
    async def act(db: Database) -> None:
        dispatcher = FakeDispatcher()
        tasks = tasks_of(db, dispatcher)
        dispatcher.refuse = errors.QueueFull()
        with pytest.raises(errors.QueueFull):
            await tasks.accept(job())
        dispatcher.refuse = None
        async with db.write() as session:
            await session.execute(text("PRAGMA max_page_count = 1"))
        with pytest.raises(errors.DiskFull):
            await tasks.accept(job(timeout=1.0, name="task-big" + "x" * 5000))
        assert not dispatcher.open_now
        async with db.read() as session:
            assert (await session.execute(text("SELECT count(*) FROM tasks"))).scalar() == 0

    using(tmp_path, act)


def test_task_pages_join_rows_and_memory_in_one_list(tmp_path: Path) -> None:
    chance = random.Random(3)

    async def act(db: Database) -> None:
        dispatcher = FakeDispatcher()
        tasks, rows = tasks_of(db, dispatcher), rows_of(db, 3600)
        now = datetime.now(UTC)
        ids = []
        for n in range(23):
            one = job(created_at=now - timedelta(seconds=n), name=f"task-{n}")
            ids.append(one.id)
            event_log = EventLog(one)
            where = chance.choice(["memory", "database", "both"])
            if where != "memory":
                await rows.add(one)
                done(event_log)
                await rows.end(event_log)
            if where != "database":
                dispatcher.ended[one.id] = event_log
        for limit in (1, 4, 7, 50):
            found: list[str] = []
            for offset in range(0, 30, limit):
                page, total = await tasks.list(Filter(kinds=["text"]), limit=limit, offset=offset)
                assert total == 23
                found += [task.id for task in page]
            assert found == ids

    using(tmp_path, act)


def test_task_row_that_cannot_be_read_any_more_fails_the_task(tmp_path: Path) -> None:
    async def act(db: Database) -> None:
        rows = rows_of(db)
        async with db.write() as session:
            session.add(row_of(job(name="task-good")))
            broken = row_of(job(name="task-broken"))
            broken.request = b"\xc1"
            session.add(broken)
        assert [each.id for each in await rows.recover()] == ["task-good"]
        task = await rows.get("task-broken")
        assert task is not None
        assert isinstance(task.error, errors.InternalError)

    using(tmp_path, act)


def test_task_ends_once(tmp_path: Path) -> None:
    async def act(db: Database) -> None:
        rows, one = rows_of(db), job()
        await rows.add(one)
        failed = protocol.Failed(id=one.id, code="TIMEOUT", message="late")
        for final in (protocol.Cancelled(id=one.id), failed):
            event_log = EventLog(one)
            event_log.put(final)
            await rows.end(event_log)
        task = await rows.get(one.id)
        assert task is not None
        assert task.status == "cancelled"

    using(tmp_path, act)


def test_retry_of_an_unseen_task_shows_its_watchers_one_run_only() -> None:
    event_log = EventLog(job())
    for worker, words in (("m/0", ["lost"]), ("m/1", ["one", " two"])):
        event_log.dispatch(worker)
        event_log.put(protocol.Started(id=event_log.job.id))
        for index, word in enumerate(words):
            event_log.put(protocol.TextDelta(id=event_log.job.id, text=word, index=index))
    event_log.put(protocol.Cancelled(id=event_log.job.id))

    async def read() -> list[Any]:
        return [event async for events in event_log.batches() for event in events]

    tokens = [event.text for event in asyncio.run(read()) if isinstance(event, protocol.TextDelta)]
    assert tokens == ["one", " two"]


def test_ended_tasks_beyond_the_bound_go_from_the_key_that_holds_most(tmp_path: Path) -> None:
    async def act(db: Database) -> None:
        rows = rows_of(db, max_bytes=20_000)
        jobs = [job(key_id="small"), *(job(key_id="large", name=f"task-{n}") for n in range(4))]
        for one in jobs:
            await rows.add(one)
            event_log = EventLog(one)
            final = protocol.TextDone(
                id=one.id,
                choices=(protocol.TextChoice(text="x" * 5000, finish_reason="stop"),),
                prompt_tokens=1,
                completion_tokens=1,
            )
            event_log.put(final)
            await rows.end(event_log)
        waiting = job(key_id="large", name="task-waiting", prompt="y" * 100_000)
        await rows.add(waiting)
        await rows.expire()
        async with db.read() as session:
            left = set(await session.scalars(select(StoredTask.id)))
        assert left == {jobs[0].id, jobs[3].id, jobs[4].id, waiting.id}

    using(tmp_path, act)


def test_task_is_refused_where_it_would_fill_the_disk(tmp_path: Path) -> None:
    async def act(db: Database) -> None:
        space = DiskSpace(tmp_path, 2**62)
        rows = TaskStore(db, inference_response, retention=60, max_bytes=1, space=space)
        dispatcher = FakeDispatcher()
        tasks = Tasks(
            rows,
            cast("Any", dispatcher),
            finish=made_nothing,
            discard_uploads=dispatcher.discarded.append,
            retention=60,
        )
        one = job()
        with pytest.raises(errors.DiskFull):
            await tasks.accept(one)
        assert [each.id for each in dispatcher.discarded] == [one.id]
        assert not dispatcher.open_now

    using(tmp_path, act)
