"""One job's events: every reader sees each of them once, in order, whenever it comes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from bitinglip.scheduling.dispatch.quarantine import Quarantine, fingerprint
from bitinglip.scheduling.dispatch.recent import RecentJobs
from bitinglip.scheduling.event_log import Event, EventLog, Loading, Queued
from bitinglip.scheduling.job import Job
from bitinglip.scheduling.queue.priority import priority_of
from bitinglip.settings.limits import Tier
from tests.support.jobs import text_job
from workers.protocol import Cancelled, Started, TextChoice, TextDelta, TextDone, TextJob


def job(name: str = "j", **fields: Any) -> Job:
    return text_job(name=name, max_tokens=3, **fields)


def token(index: int) -> TextDelta:
    return TextDelta(id="j", text=str(index), index=index)


DONE = TextDone(
    id="j",
    choices=(TextChoice(text="x", finish_reason="stop"),),
    prompt_tokens=1,
    completion_tokens=1,
)


async def read(event_log: EventLog) -> list[Event]:
    return [event async for events in event_log.batches() for event in events]


def run(test: Callable[[EventLog], Awaitable[None]]) -> None:
    async def within() -> None:
        async with asyncio.timeout(60):
            await test(EventLog(job()))

    asyncio.run(within())


def test_event_log_shows_early_and_late_readers_the_same() -> None:
    async def test(event_log: EventLog) -> None:
        early = asyncio.create_task(read(event_log))
        event_log.put(Queued(1))
        await asyncio.sleep(0)
        event_log.put(Started(id="j"))
        event_log.put(token(0))
        late = asyncio.create_task(read(event_log))
        await asyncio.sleep(0)
        event_log.put(DONE)
        event_log.put(Cancelled(id="j"))  # too late: it has ended
        expected = [Queued(1), Started(id="j"), token(0), DONE]
        assert await early == await late == await read(event_log) == expected

    run(test)


def test_event_log_reader_that_leaves_disturbs_no_other() -> None:
    async def test(event_log: EventLog) -> None:
        gone, stays = asyncio.create_task(read(event_log)), asyncio.create_task(read(event_log))
        await asyncio.sleep(0)
        gone.cancel()
        event_log.put(DONE)
        assert await stays == [DONE]

    run(test)


def test_event_log_tells_unread_queue_positions_once() -> None:
    async def test(event_log: EventLog) -> None:
        for position in (9, 8, 7):
            event_log.put(Queued(position))
        event_log.put(Loading(0.1))
        event_log.put(Loading(0.9))
        reader = asyncio.create_task(read(event_log))
        await asyncio.sleep(0)
        event_log.put(Loading(1.0))  # this one comes after what was seen
        event_log.put(DONE)
        assert await reader == [Queued(7), Loading(0.9), Loading(1.0), DONE]

    run(test)


def test_event_log_output_that_was_not_seen_can_be_reset() -> None:
    async def test(event_log: EventLog) -> None:
        event_log.put(Started(id="j"))
        event_log.put(token(0))
        assert not event_log.output_seen
        event_log.reset_output()
        event_log.put(Started(id="j"))  # on another worker: it has no reader
        event_log.put(DONE)
        assert await read(event_log) == [Started(id="j"), DONE]

    run(test)


def test_event_log_output_that_was_seen_counts_as_sent() -> None:
    async def test(event_log: EventLog) -> None:
        batches = event_log.batches()
        event_log.put(Started(id="j"))
        await anext(batches)
        assert not event_log.output_seen
        event_log.put(token(0))
        await anext(batches)
        assert event_log.output_seen

    run(test)


def test_event_log_message_tells_a_worker_the_level_of_the_job() -> None:
    low = EventLog(job(priority=priority_of(Tier(priority=2), "low")))
    assert low.job.priority.level == 3
    assert low.message == msgspec.structs.replace(low.work, priority=3)


def test_event_log_status_names_where_a_job_is() -> None:
    async def test(event_log: EventLog) -> None:
        seen = [event_log.status]
        for event in (Queued(2), Loading(0.5), Started(id="j"), token(0), DONE):
            event_log.put(event)
            seen.append(event_log.status)
        assert seen == ["queued", "queued", "loading", "running", "running", "completed"]

    run(test)


def test_recent_jobs_forget_the_oldest_first() -> None:
    recent = RecentJobs(2)
    event_logs = [EventLog(job(str(number))) for number in range(3)]
    for event_log in event_logs:
        recent.add(event_log)
    assert recent.get("0") is None
    assert [event_log.job.id for event_log in recent] == ["2", "1"]


def test_recent_jobs_are_bounded_in_bytes_by_the_key_that_holds_most() -> None:
    recent = RecentJobs(100, most_bytes=20_000)
    small = EventLog(job("small", key_id="other"))
    recent.add(small)
    for number in range(50):
        event_log = EventLog(job(str(number)))
        choice = msgspec.structs.replace(DONE.choices[0], text="x" * 1000)
        event_log.put(msgspec.structs.replace(DONE, choices=(choice,)))
        recent.add(event_log)
        assert recent.bytes <= 20_000
    assert recent.get("small") is small
    assert recent.get("49") is not None
    assert recent.get("0") is None


def test_recent_jobs_bear_a_job_that_comes_again() -> None:
    recent = RecentJobs(2)
    again = EventLog(job("1"))
    for event_log in (EventLog(job("0")), EventLog(job("1")), again):
        recent.add(event_log)
    assert recent.get("1") is again
    for number in range(2, 5):
        recent.add(EventLog(job(str(number))))
    assert [event_log.job.id for event_log in recent] == ["4", "3"]
    alone = RecentJobs(2)
    for number in (3, 4):
        alone.add(EventLog(job(str(number))))
    assert recent.bytes == alone.bytes


def test_recent_jobs_hold_no_prompt() -> None:
    recent = RecentJobs(2)
    event_log = EventLog(job("a", prompt="long " * 1000))
    recent.add(event_log)
    assert isinstance(event_log.job.work, TextJob)
    assert event_log.job.work.prompt is None


def test_quarantine_fingerprint_is_the_same_for_the_same_work() -> None:
    one = fingerprint(job("a", stream=True, key_id="x"))
    assert one == fingerprint(job("b", stream=False, key_id="y"))
    assert one != fingerprint(job("a", prompt="q"))


def test_quarantine_is_by_model_and_bounded() -> None:
    held = Quarantine()
    assert job() not in held
    held.add(job())
    assert job("other") in held
    assert job(model="n") not in held
    for number in range(2000):
        held.add(job(prompt=str(number)))
    assert job() not in held
    assert job(prompt="1999") in held
    held.release({"m"})
    assert job(prompt="1999") not in held
