"""Servers that share a database: who is among them, what they tell each other, whose rows are."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from bitinglip.access.credentials import Credential
from bitinglip.access.keys import Caller, KeyRing
from bitinglip.access.scopes import Scope
from bitinglip.access.tickets import LIFETIME, SharedTickets
from bitinglip.audit.log import AuditLog
from bitinglip.batches.rows import BatchRows, KeptBatch
from bitinglip.db.database import Database
from bitinglip.db.tables import ApiKey
from bitinglip.disk_space import DiskSpace
from bitinglip.errors import ExpiredApiKey, InvalidToken
from bitinglip.gateways.changes import CACHE, KEYS, count_change
from bitinglip.gateways.membership import Membership
from bitinglip.scheduling.event_log import EventLog
from bitinglip.settings.gateways import Gateways
from bitinglip.tasks.store import TaskStore
from bitinglip.telemetry.health import Health
from bitinglip.wire.batches import Batch
from bitinglip.wire.response import inference_response
from tests.support.jobs import text_job
from workers import protocol


class Now:
    """Holds a clock that the test sets."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


def using(tmp_path: Path, act: Callable[[Database], Awaitable[None]]) -> None:
    async def run() -> None:
        db = await Database.open(tmp_path / "bitinglip.db")
        try:
            async with asyncio.timeout(60):
                await act(db)
        finally:
            await db.close()

    asyncio.run(run())


def member(db: Database, name: str, now: Now) -> Membership:
    return Membership(db, name, Gateways(lease=10), Health(), now)


def rows_of(db: Database, owner: str) -> TaskStore:
    space = DiskSpace(Path(), 0)
    return TaskStore(
        db, inference_response, retention=60, max_bytes=10**6, space=space, owner=owner
    )


async def silence(membership: Membership, now: Now) -> None:
    """Let a lease pass in which only one server looks."""
    for _ in range(4):
        await membership.poll()
        now.at += 4


def test_tasks_of_a_dead_server_are_taken_up_once(tmp_path: Path) -> None:
    async def act(db: Database) -> None:
        now = Now()
        dead, one, two = (member(db, name, now) for name in ("dead", "one", "two"))
        for each in (dead, one, two):
            await each.join()
        of_dead, of_one, of_two = (rows_of(db, name) for name in ("dead", "one", "two"))
        begun, waits, unwanted = (text_job(name=f"task-{n}") for n in range(3))
        for job in (begun, waits, unwanted):
            await of_dead.add(job)
        await of_dead.begin(begun)
        await of_one.ask_cancel(unwanted.id)
        assert (await of_dead.to_cancel(), await of_one.to_cancel()) == ([unwanted.id], [])
        assert await of_one.take_up() == []
        await asyncio.gather(*(each._beat() for each in (one, two)))
        for _ in range(4):
            await asyncio.gather(one.poll(), two.poll())
            await asyncio.gather(one._beat(), two._beat())
            now.at += 4
        found = await asyncio.gather(of_one.take_up(), of_two.take_up())
        assert [job.id for jobs in found for job in jobs] == [waits.id]
        states = {}
        for job in (begun, waits, unwanted):
            task = await of_two.get(job.id)
            assert task is not None
            states[job.id] = task.status
        assert list(states.values()) == ["failed", "queued", "cancelled"]

    using(tmp_path, act)


def test_end_of_a_task_is_not_written_by_a_server_that_was_taken_for_dead(tmp_path: Path) -> None:
    async def act(db: Database) -> None:
        now = Now()
        stopped, other = member(db, "stopped", now), member(db, "other", now)
        await stopped.join()
        await other.join()
        late, rows = rows_of(db, "stopped"), rows_of(db, "other")
        job, rejoined = text_job(), []

        async def rejoin() -> None:
            rejoined.append(await late.open_ids(own=True))

        stopped.on_rejoin(rejoin)
        await late.add(job)
        await silence(other, now)
        (again,) = await rows.take_up()
        assert again.id == job.id
        event_log = EventLog(job)
        event_log.put(protocol.Cancelled(id=job.id))
        assert not await late.is_own(job.id)
        assert not await late.end(event_log)
        assert not await late.begin(job)
        task = await rows.get(job.id)
        assert task is not None
        assert task.status == "queued"
        await stopped.poll()
        assert rejoined == [set()]
        await stopped.poll()
        assert len(rejoined) == 1

    using(tmp_path, act)


def test_tasks_that_a_draining_server_leaves_are_taken_up_at_once(tmp_path: Path) -> None:
    async def act(db: Database) -> None:
        now = Now()
        leaving, other = member(db, "leaving", now), member(db, "other", now)
        await leaving.join()
        await other.join()
        own, rows = rows_of(db, "leaving"), rows_of(db, "other")
        first, second = text_job(name="task-1"), text_job(name="task-2")
        await own.add(first)
        await own.add(second)
        await own.release([first.id])
        assert [job.id for job in await rows.take_up()] == [first.id]
        await leaving.leave()
        assert [job.id for job in await rows.take_up()] == [second.id]

    using(tmp_path, act)


def test_batch_of_a_dead_server_goes_on_once_and_is_saved_by_its_owner_only(tmp_path: Path) -> None:
    async def act(db: Database) -> None:
        now = Now()
        dead, other = member(db, "dead", now), member(db, "other", now)
        await dead.join()
        await other.join()
        late, rows = (BatchRows(db, retention=60, owner=name) for name in ("dead", "other"))
        batch = Batch(
            id="batch_1",
            endpoint="/v1/completions",
            input_file_id="file-1",
            completion_window="24h",
            created_at=1,
            expires_at=2,
        )
        kept = KeptBatch(batch, Credential("k"))
        assert await late.save(kept)
        await rows.ask_cancel(batch.id)
        assert await late.to_cancel() == [batch.id]
        assert [each.batch.status for each in await rows.elsewhere()] == ["cancelling"]
        await silence(other, now)
        (taken,) = await rows.take_up()
        assert taken.batch.status == "cancelling"
        batch.status = "completed"
        assert not await late.save(kept)
        found = await rows.find(batch.id)
        assert found is not None
        assert found.batch.status == "cancelling"
        assert not await late.is_own(batch.id)

    using(tmp_path, act)


def test_keys_that_another_server_changed_are_read_again(tmp_path: Path) -> None:
    async def act(db: Database) -> None:
        now = Now()
        audit, membership = AuditLog(db, bytes(32)), member(db, "one", now)
        await membership.join()
        here = await KeyRing.open(db, b"p" * 32, audit)
        there = await KeyRing.open(db, b"p" * 32, audit)
        membership.on_change(KEYS, here.reload)
        await membership.poll()
        record, text = await there.create(name="n", models=["a"])
        await membership.poll()
        assert here.authenticate(text).models == ("a",)
        await there.change(record.id, models=["b"])
        await membership.poll()
        assert here.authenticate(text).models == ("b",)
        await there.revoke(record.id)
        await membership.poll()
        assert here.get(record.id).revoked_at is not None
        # Neither makes a second first key.
        assert [len(ring.list()) for ring in (here, there)] == [1, 1]

    using(tmp_path, act)


def test_key_that_another_version_wrote_is_refused_and_ends_no_server(tmp_path: Path) -> None:
    async def act(db: Database) -> None:
        audit = AuditLog(db, bytes(32))
        ring = await KeyRing.open(db, b"p" * 32, audit)
        (bad, bad_text), (_, good_text) = [await ring.create(name=name) for name in ("a", "b")]
        unknown = {"daily": {"hours": 1.0}}
        for quotas, refused in ((unknown, True), (None, False)):
            async with db.write() as session:
                row = await session.get(ApiKey, bad.id)
                assert row is not None
                row.quotas = quotas
            await ring.reload()
            ring.authenticate(good_text)
            with pytest.raises(ExpiredApiKey) if refused else nullcontext():
                ring.authenticate(bad_text)

    using(tmp_path, act)


def test_ticket_of_one_server_is_redeemed_by_another_once(tmp_path: Path) -> None:
    async def act(db: Database) -> None:
        now, secret = Now(), b"s" * 32
        here, there = (SharedTickets(db, secret, now) for _ in range(2))
        caller = Caller("k", "name", "pro", frozenset({Scope.TEXT}), generation=2, token="t")
        ticket = here.issue(caller, "task-1")
        for wrong, task_id in ((ticket, "task-2"), (ticket[:-4] + "AAA=", "task-1"), ("x", "t")):
            with pytest.raises(InvalidToken):
                await there.take(wrong, task_id)
        owner = await there.take(ticket, "task-1")
        assert (owner.credential, owner.scopes) == (caller.credential, caller.scopes)
        for office in (here, there):
            with pytest.raises(InvalidToken):
                await office.take(ticket, "task-1")
        late = here.issue(caller, "task-1")
        now.at += LIFETIME + 1
        with pytest.raises(InvalidToken):
            await there.take(late, "task-1")

    using(tmp_path, act)


def test_change_of_another_server_is_read_though_a_poll_saw_the_own_one_first(
    tmp_path: Path,
) -> None:
    async def act(db: Database) -> None:
        one, reads = member(db, "one", Now()), list[int]()

        async def read() -> None:
            reads.append(1)

        async def change() -> int:
            async with db.write() as session:
                return await count_change(session, CACHE)

        one.on_change(CACHE, read)
        await one.join()
        await one.poll()
        own = await change()
        await one.poll()  # before the writer goes on
        one.did(CACHE, own)
        reads.clear()
        await one.poll()
        assert not reads
        await change()
        await one.poll()
        assert reads == [1]

    using(tmp_path, act)
