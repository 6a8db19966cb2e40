"""The database class over a real PostgreSQL server."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, exc, text
from sqlalchemy.pool import NullPool
from sqlmodel import col, select

from bitinglip.audit.entry import Action, Entry
from bitinglip.audit.log import AuditLog
from bitinglip.db import postgres as backend
from bitinglip.db.database import Database
from bitinglip.db.dialects import insert, without
from bitinglip.db.files import DatabaseError
from bitinglip.db.migrations import HEAD
from bitinglip.db.migrations.upgrade import upgrade_connection
from bitinglip.db.tables import LimitCell, StoredTask, Table
from bitinglip.errors import DatabaseUnavailable, InvalidRequest
from bitinglip.settings.database import Database as DatabaseSettings
from bitinglip.telemetry.health import Health
from tests.support.postgres import PostgresServer

NOWHERE = Path("/nowhere/bitinglip.db")
ADD = "UPDATE limit_cells SET full_at = full_at + 1"


def using(url: str, act: Callable[[Database], Awaitable[None]]) -> None:
    async def run() -> None:
        db = await Database.open(NOWHERE, settings=DatabaseSettings(url=url))
        try:
            await act(db)
        finally:
            await db.close()

    asyncio.run(run())


async def nothing(_: Database) -> None:
    pass


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.make()


def test_migrations_make_just_what_the_tables_say_in_postgresql(url: str) -> None:
    using(url, nothing)
    using(url, nothing)  # a second start finds them
    with create_engine(url, poolclass=NullPool).connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Table.metadata) == []


def test_migration_of_an_older_schema_in_postgresql_keeps_its_rows(url: str) -> None:
    with create_engine(url, poolclass=NullPool).begin() as connection:
        upgrade_connection(connection, "0002")
        columns = "id, key_id, kind, model, state, request, created_at"
        row = "'t', 'k', 'text', 'm', 'queued', '\\x0102', '2026-01-01'"
        connection.exec_driver_sql(f"INSERT INTO tasks ({columns}) VALUES ({row})")

    async def act(db: Database) -> None:
        async with db.read() as session:
            (task,) = (await session.scalars(select(StoredTask))).all()
            assert (task.id, task.bytes, task.request) == ("t", 2, b"\1\2")
            assert task.created_at == datetime(2026, 1, 1, tzinfo=UTC)

    using(url, act)


def test_schema_of_another_version_in_postgresql_is_refused(
    url: str, postgres: PostgresServer
) -> None:
    using(url, nothing)
    with create_engine(url, poolclass=NullPool).begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0999'")
    with pytest.raises(DatabaseError, match=f"schema 0999.*{HEAD}"):
        using(url, nothing)
    postgres.run("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    with pytest.raises(DatabaseError, match="UTF8"):
        using(postgres.url("latin"), nothing)


def test_readers_of_postgresql_cannot_write(url: str) -> None:
    async def act(db: Database) -> None:
        async with db.read() as session:
            with pytest.raises(exc.InternalError, match="read-only"):
                await session.execute(text("DELETE FROM limit_cells"))

    using(url, act)


def test_character_that_postgresql_cannot_hold_is_the_client_s_fault(url: str) -> None:
    async def act(db: Database) -> None:
        with pytest.raises(InvalidRequest):
            async with db.read() as session:
                await session.get(StoredTask, "task\0")
        with pytest.raises(InvalidRequest):
            async with db.write() as session:
                await session.execute(text("INSERT INTO limit_cells VALUES (:id, 0)"), {"id": "\0"})
        assert not db._health.problems()

    using(url, act)


def test_gateways_that_share_postgresql_write_in_turn(url: str) -> None:
    """No other gateway changes what a transaction has read before it writes."""

    async def add(db: Database) -> None:
        async with db.write() as session:
            (found,) = (await session.execute(text("SELECT full_at FROM limit_cells"))).one()
            await asyncio.sleep(0.001)
            await session.execute(text(f"UPDATE limit_cells SET full_at = {found + 1}"))

    async def act(one: Database) -> None:
        other = await Database.open(NOWHERE, settings=DatabaseSettings(url=url))
        async with one.write() as session:
            await session.execute(text("INSERT INTO limit_cells VALUES ('x', 0)"))
        await asyncio.gather(*(add(db) for db in (one, other) for _ in range(20)))
        async with other.read() as session:
            assert (await session.scalars(text("SELECT full_at FROM limit_cells"))).all() == [40]
        await other.close()

    using(url, act)


def test_lock_of_another_program_in_postgresql_is_given_up(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = text(str(backend._BEGIN).replace(f"'{backend.LOCK_SECONDS}s'", "'50ms'"))
    monkeypatch.setattr(backend, "_BEGIN", begin)

    async def act(db: Database) -> None:
        with create_engine(url, poolclass=NullPool).begin() as other:
            other.execute(text(f"SELECT pg_advisory_xact_lock({backend.WRITERS})"))
            with pytest.raises(DatabaseUnavailable, match="locked by another program"):
                async with db.write():
                    pass
            await db.check()
        async with db.write():
            pass

    using(url, act)


def test_changes_are_durable_where_postgresql_s_default_is_not(url: str) -> None:
    async def act(db: Database) -> None:
        async with db.write() as session:
            await session.execute(text("SET SESSION synchronous_commit = off"))
        async with db.write() as session:
            found = await session.scalars(text("SELECT current_setting('synchronous_commit')"))
            assert found.one() == "on"

    using(url, act)


def test_postgresql_that_goes_away_is_reported_and_used_again(
    url: str, postgres: PostgresServer
) -> None:
    health = Health()

    async def run() -> None:
        db = await Database.open(NOWHERE, health, DatabaseSettings(url=url))
        async with db.write() as session:
            await session.execute(text("INSERT INTO limit_cells VALUES ('x', 0)"))
        postgres.stop()
        try:
            with pytest.raises(DatabaseUnavailable):
                await db.check()
            with pytest.raises(DatabaseUnavailable):
                async with db.write() as session:
                    await session.execute(text(ADD))
            with pytest.raises(DatabaseUnavailable):
                await db.in_snapshot(lambda select: list(select("SELECT 1")))
            assert "database" in health.problems()
        finally:
            postgres.start()
        await db.probe()
        assert not health.problems()
        async with db.read() as session:
            (cell,) = (await session.scalars(select(LimitCell))).all()
            assert (cell.id, cell.full_at) == ("x", 0)
        await db.close()

    asyncio.run(run())


@pytest.mark.parametrize("form", ["me:secret@/none?host={}", "me@/none?host={}&password=secret"])
def test_postgresql_that_is_not_there_stops_the_start_with_one_line(
    tmp_path: Path, form: str
) -> None:
    url = f"postgresql+psycopg://{form.format(tmp_path)}"
    with pytest.raises(DatabaseError) as caught:
        using(url, nothing)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_json_without_a_field_is_read_from_postgresql_whatever_it_holds(url: str) -> None:
    result = {"result": {"text": "\0" * 9}, "usage": {"n": 1}, "model": "ü\0"}
    made = {"key_id": "k", "kind": "text", "model": "m", "state": "completed"}

    async def act(db: Database) -> None:
        async with db.write() as session:
            row = {"id": "t", "result": result, "created_at": datetime.now(UTC), **made}
            await session.execute(insert(session, StoredTask).values([row]))
            again = insert(session, StoredTask).values([row]).on_conflict_do_nothing()
            await session.execute(again)
        async with db.read() as session:
            rest = select(without(session, col(StoredTask.result), "result"))
            assert (await session.scalars(rest)).one() == {"usage": {"n": 1}, "model": "ü\ufffd"}
            assert (await session.scalars(select(col(StoredTask.result)))).one() == result

    using(url, act)


def test_audit_chain_in_postgresql_finds_what_was_changed(url: str) -> None:
    async def act(db: Database) -> None:
        log = AuditLog(db, b"k" * 32)
        for number in range(5):
            await log.record(Entry(Action.KEY_CREATE, target=str(number)))
        assert (await log.verify())[:3] == (True, 5, None)
        async with db.write() as session:
            await session.execute(text("UPDATE audit_log SET target = 'x' WHERE seq = 3"))
        assert (await log.verify())[:3] == (False, 5, 3)

    using(url, act)


def test_postgresql_is_for_one_server_until_it_ends(
    url: str, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitinglip.db.database.PATIENCE", 2.0)
    settings = DatabaseSettings(url=url)

    async def run() -> None:
        health = Health()
        one = await Database.open(NOWHERE, health, settings)
        other = await Database.open(NOWHERE, settings=settings)  # a command may look
        await one.claim()
        await one.claim()
        with pytest.raises(DatabaseError, match="Another server"):
            await other.claim()
        postgres.stop()  # and the claim is lost
        postgres.start()
        await other.claim()
        await one.probe()
        assert "Another server" in health.problems()["database"]
        await other.close()
        await one.probe()
        assert not health.problems()
        await one.close()

    asyncio.run(run())


def test_postgresql_is_for_all_servers_that_share_it_and_for_no_other(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitinglip.db.database.PATIENCE", 2.0)
    settings = DatabaseSettings(url=url)

    async def run() -> None:
        one, two, alone, copied = [
            await Database.open(NOWHERE, settings=settings) for _ in range(4)
        ]
        await one.claim("one")
        await two.claim("two")
        with pytest.raises(DatabaseError, match=r"Another server.*gateways\.shared in all"):
            await alone.claim()
        with pytest.raises(DatabaseError, match=r"gateway\.id from a home that is a copy"):
            await copied.claim("one")
        await one.close()
        await copied.claim("one")
        await copied.close()
        await two.close()
        await alone.claim()
        late = await Database.open(NOWHERE, settings=settings)
        with pytest.raises(DatabaseError, match=r"without gateways\.shared"):
            await late.claim("one")
        await late.close()
        await alone.close()

    asyncio.run(run())


def test_writers_of_postgresql_wait_for_no_reader(url: str) -> None:
    """Readers that hold all their connections once kept the turn from every writer."""

    async def run() -> None:
        settings = DatabaseSettings(url=url, pool_size=1, max_overflow=0, pool_timeout=30)
        db = await Database.open(NOWHERE, settings=settings)
        async with db.read() as session:
            await session.execute(text("SELECT 1"))
            async with asyncio.timeout(20), db.write() as writing:
                await writing.execute(text("INSERT INTO limit_cells VALUES ('x', 0)"))
        await db.close()

    asyncio.run(run())


def test_postgresql_that_says_nothing_keeps_the_turn_from_no_other_writer(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitinglip.db.database._BEGIN_SECONDS", 0.2)

    async def act(db: Database) -> None:
        with create_engine(url, poolclass=NullPool).begin() as other:
            other.execute(text(f"SELECT pg_advisory_xact_lock({backend.WRITERS})"))
            with pytest.raises(DatabaseUnavailable, match="does not answer"):
                async with db.write():
                    pass
            async with db.write_beside() as session:  # waits for no turn
                await session.execute(text("INSERT INTO limit_cells VALUES ('x', 0)"))
        monkeypatch.undo()
        async with db.write() as session:
            await session.execute(text(ADD))
        assert not db._health.problems()

    using(url, act)
