"""The audit log on a real database: what it holds, shows and deletes, also when it cannot write."""

from pathlib import Path

import pytest
from sqlalchemy import text

from bitinglip.audit.entry import Action, Actor, Entry, now
from bitinglip.audit.log import DAY, MOST_WAITING, AuditLog
from bitinglip.audit.query import Filter
from bitinglip.errors import DatabaseUnavailable
from tests.support.audit_log import Run, entries, using
from tests.support.other_program import change

LONG_AGO = int(400 * DAY * 1e6)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bitinglip.db"


def count(run: Run, audit: AuditLog, **wanted: object) -> int:
    total: int = run(audit.list(Filter(**wanted), limit=1))[1]  # type: ignore[arg-type]
    return total


def test_audit_entry_is_shown_as_it_was_made(path: Path) -> None:
    actor = Actor("k1", "laptop", "t1", "10.0.0.1", "req-1", "curl")
    at = 1_800_000_000_123_456
    made = Entry(Action.KEY_UPDATE, actor, "k2", "ok", {"tier": "free"}, {"tier": "pro"}, at)
    with using(path) as (run, audit):
        run(audit.record(made))
        assert entries(run, audit) == [
            {
                "entry": 1,
                "at": "2027-01-15T08:00:00.123456Z",
                "actor": "k1",
                "actor_name": "laptop",
                "token": "t1",
                "action": "key.update",
                "target": "k2",
                "outcome": "ok",
                "address": "10.0.0.1",
                "request_id": "req-1",
                "user_agent": "curl",
                "before": {"tier": "free"},
                "after": {"tier": "pro"},
            }
        ]


def test_audit_entries_are_selected_by_who_what_and_when(path: Path) -> None:
    with using(path) as (run, audit):
        for number, action in enumerate((Action.KEY_CREATE, Action.KEY_REVOKE, Action.BACKUP)):
            audit.remember(Entry(action, Actor("k1", "one"), "x", at=100 + number))
        audit.remember(Entry(Action.MODEL_LOAD, Actor("k2", "one"), "m_", at=200))
        audit.remember(Entry(Action.MODEL_LOAD, Actor("k3", "two"), "mx", at=201))
        run(audit.flush())
        assert count(run, audit) == 5
        assert (count(run, audit, actor="k1"), count(run, audit, actor="one")) == (3, 4)
        assert count(run, audit, action="key.create") == 1
        assert (count(run, audit, action="key"), count(run, audit, action="ke")) == (2, 0)
        assert count(run, audit, target="m_") == 1
        assert (count(run, audit, since=101), count(run, audit, until=101)) == (4, 1)
        assert count(run, audit, actor="one", action="key", since=101, until=200) == 1
        assert count(run, audit, actor="' OR 1=1 --") == 0
        rows, total = run(audit.list(Filter(), limit=2, offset=1))
        assert (total, [row["entry"] for row in rows]) == (5, [4, 3])


def test_audit_entry_of_a_transaction_that_is_rolled_back_is_not_there(path: Path) -> None:
    async def fail() -> None:
        async with audit._db.write() as session:
            await audit.append(session, Entry(Action.KEY_CREATE))
            raise ZeroDivisionError

    with using(path) as (run, audit):
        with pytest.raises(ZeroDivisionError):
            run(fail())
        run(audit.record(Entry(Action.KEY_REVOKE)))
        assert [row["action"] for row in entries(run, audit)] == ["key.revoke"]
        assert run(audit.verify()).valid


def test_audit_retention_deletes_from_the_old_end_and_the_chain_holds(path: Path) -> None:
    with using(path) as (run, audit):
        for _ in range(1200):
            audit.remember(Entry(Action.MODEL_LOAD, at=now() - LONG_AGO))
            if len(audit._waiting) == MOST_WAITING:
                run(audit.flush())
        audit.remember(Entry(Action.MODEL_UNLOAD))
        # old by its clock, but behind a younger one: the log has no holes
        audit.remember(Entry(Action.MODEL_LOAD, at=now() - LONG_AGO))
        run(audit.flush())
        run(audit.prune())
        assert run(audit.verify())[:3] == (True, 5, None)
        pruned = [row["after"] for row in entries(run, audit) if row["action"] == "audit.prune"]
        assert pruned == [
            {"entries": 200, "through": 1200},
            {"entries": 500, "through": 1000},
            {"entries": 500, "through": 500},
        ]
        run(audit.prune())
        assert count(run, audit) == 5
    # A deletion by another program is not ours.
    change(path, "DELETE FROM audit_log WHERE seq = 1201")
    with using(path) as (run, audit):
        assert run(audit.verify())[:3] == (False, 4, 1201)


def test_audit_retention_keeps_at_most_so_many_entries(path: Path) -> None:
    with using(path, max_entries=100) as (run, audit):
        for _ in range(700):
            audit.remember(Entry(Action.MODEL_LOAD))
        run(audit.flush())
        run(audit.prune())
        assert 100 <= count(run, audit) <= 102
        assert run(audit.verify()).valid


@pytest.mark.sqlite
def test_audit_log_keeps_what_the_database_refuses_and_writes_it_later(path: Path) -> None:
    async def set_limit(pages: str) -> None:
        async with audit._db.write() as session:
            await session.execute(text(f"PRAGMA query_only = {pages}"))

    with using(path) as (run, audit):
        run(audit.record(Entry(Action.SERVER_START)))
        run(set_limit("ON"))
        with pytest.raises(DatabaseUnavailable):
            run(audit.record(Entry(Action.MODEL_REMOVE, target="m")))
        for _ in range(MOST_WAITING + 4):
            audit.remember(Entry(Action.AUTH_REFUSED))
        with pytest.raises(DatabaseUnavailable):
            run(audit.flush())
        run(set_limit("OFF"))
        for _ in range(2):
            run(audit.flush())
        rows = entries(run, audit)
        assert count(run, audit) == 1 + MOST_WAITING + 1
        assert (rows[0]["action"], rows[0]["after"]) == ("audit.lost", {"entries": 5})
        assert count(run, audit, action="model.remove", target="m") == 1
        assert run(audit.verify()).valid


def test_audit_log_finds_the_newest_entry_of_some_actions(path: Path) -> None:
    with using(path) as (run, audit):
        assert run(audit.last(Action.SERVER_START)) is None
        for action in (Action.SERVER_START, Action.SERVER_STOP, Action.BACKUP):
            run(audit.record(Entry(action)))
        assert run(audit.last(Action.SERVER_START, Action.SERVER_STOP))["action"] == "server.stop"
