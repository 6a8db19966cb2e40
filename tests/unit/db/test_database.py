"""The database file is durable, private, and never replaced where it is damaged."""

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import URL, create_engine, exc, text
from sqlalchemy.pool import NullPool
from sqlmodel import select

from bitinglip.audit.chain import verify_file
from bitinglip.db import database as database_module
from bitinglip.db import files, migrations, sqlite
from bitinglip.db.database import Database
from bitinglip.db.files import DatabaseError
from bitinglip.db.migrations.upgrade import upgrade
from bitinglip.db.tables import Table
from bitinglip.errors import DatabaseUnavailable, DiskFull
from bitinglip.telemetry.health import Health
from tests.support.awake import AwakeClock
from tests.support.wait import eventually

pytestmark = pytest.mark.sqlite  # tests/integration/postgres has those of PostgreSQL

WRITER = """
import asyncio, sys
from pathlib import Path
from bitinglip.access.keys import KeyRing
from bitinglip.audit.log import AuditLog
from bitinglip.db.database import Database

async def main():
    db = await Database.open(Path(sys.argv[1]))
    ring = await KeyRing.open(db, b"p" * 32, AuditLog(db, b"k" * 32))
    while True:
        record, _ = await ring.create(name="n" * 90)
        print(record.id, flush=True)

asyncio.run(main())
"""

# A server that goes without closing must not hang either.
START = """
import asyncio, sys
from pathlib import Path
from bitinglip.db.database import Database

asyncio.run(Database.open(Path(sys.argv[1])))
assert not {"alembic", "fastapi"} & set(sys.modules)
"""


def using(path: Path, act: Callable[[Database], Awaitable[None]]) -> None:
    async def run() -> None:
        database = await Database.open(path)
        try:
            await act(database)
        finally:
            await database.close()

    asyncio.run(run())


async def nothing(_: Database) -> None:
    pass


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Provide a database that exists, in a folder whose name needs quoting."""
    folder = tmp_path / "a ?#%41 folder"
    folder.mkdir()
    using(folder / "bitinglip.db", nothing)
    return folder / "bitinglip.db"


def query(path: Path, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(sql).fetchall()
        connection.commit()
    return rows


def refused(path: Path, *words: str) -> None:
    """Check that the start is refused with one line, and the file is left as it was."""
    before = path.read_bytes()
    with pytest.raises(DatabaseError) as caught:
        using(path, nothing)
    assert path.read_bytes() == before
    message = str(caught.value)
    assert "\n" not in message
    for word in (path.name, *words):
        assert word in message


def test_database_has_its_pragmas_and_file_mode(path: Path) -> None:
    wanted = {
        "journal_mode": "wal",
        "synchronous": 2,
        "busy_timeout": 5000,
        "foreign_keys": 1,
        "trusted_schema": 0,
        "cell_size_check": 1,
    }

    async def act(database: Database) -> None:
        async with database.write() as session:
            for name, value in wanted.items():
                assert (await session.execute(text(f"PRAGMA {name}"))).scalar() == value
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
        await database.check()

    using(path, act)


def test_disk_that_is_full_has_a_name(path: Path) -> None:
    async def act(database: Database) -> None:
        async with database.write() as session:
            await session.execute(text("PRAGMA max_page_count = 1"))
            await session.execute(text("CREATE TABLE t (x)"))

    with pytest.raises(DiskFull):
        using(path, act)


def test_damage_found_later_has_a_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file is not read as a whole at the start."""
    monkeypatch.setattr(files, "_QUICK", 0)
    data = path.read_bytes()
    (page,) = query(path, "SELECT rootpage FROM sqlite_master WHERE name = 'api_keys'")[0]
    at = (int(str(page)) - 1) * 4096
    path.write_bytes(data[:at] + bytes(4096) + data[at + 4096 :])

    async def act(database: Database) -> None:
        with pytest.raises(DatabaseUnavailable, match="restore a backup"):
            async with database.read() as session:
                await session.execute(text("SELECT * FROM api_keys"))

    using(path, act)


def test_lock_of_another_program_is_given_up_after_a_while_and_reported(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    health, seconds = Health(), 1
    monkeypatch.setitem(sqlite._WRITER_PRAGMAS, "busy_timeout", f"{seconds * 1000}")
    monkeypatch.setattr(database_module, "PATIENCE", seconds)

    async def act() -> None:
        database = await Database.open(path, health)
        with closing(sqlite3.connect(path)) as other:
            other.execute("BEGIN IMMEDIATE")
            writes = [write_down(database) for _ in range(20)]
            with AwakeClock() as clock:
                found = await asyncio.gather(*writes, return_exceptions=True)
                assert clock() < len(writes) / 2 * seconds  # they wait together, not in turn
            assert [type(each) for each in found] == [DatabaseUnavailable] * 20
            assert "locked by another program" in health.problems()["database"]
            await database.check()
        await database.probe()
        assert not health.problems()
        await write_down(database)
        await database.close()

    async def write_down(database: Database) -> None:
        async with database.write() as session:
            await session.execute(text("UPDATE api_keys SET name = 'x'"))

    asyncio.run(act())


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda data: data[:100],
        lambda data: data[:5000],
        lambda data: bytes(100) + data[100:],
        lambda data: data[:100] + bytes(4000) + data[4100:],
        lambda data: random.Random(1).randbytes(len(data)),
        lambda _: b"hello\n",
    ],
)
def test_damage_of_the_file_is_refused(path: Path, damage: Callable[[bytes], bytes]) -> None:
    path.write_bytes(damage(path.read_bytes()))
    refused(path, "damaged", "restore a backup")


def test_database_of_another_kind_or_a_future_version_is_refused(path: Path) -> None:
    query(path, "UPDATE alembic_version SET version_num = '0999'")
    refused(path, "schema 0999", migrations.HEAD)
    query(path, "DROP TABLE alembic_version")
    refused(path, "not a database of BitingLip")


@pytest.mark.parametrize("end", ["", "-wal", "-shm"])
def test_link_in_the_place_of_the_database_is_refused(path: Path, tmp_path: Path, end: str) -> None:
    link = path.with_name(path.name + end)
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DatabaseError, match="link"):
        using(path, nothing)
    assert not (tmp_path / "elsewhere").exists()


def test_wal_without_its_database_is_not_replayed_into_a_new_one(path: Path) -> None:
    path.rename(path.with_name(path.name + "-wal"))
    with pytest.raises(DatabaseError, match="is missing but"):
        using(path, nothing)
    assert not path.exists()


def test_copy_into_a_file_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fill(_: object) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        files.create(tmp_path / "copy.db", fill)
    assert not list(tmp_path.iterdir())


def test_folder_that_is_missing_is_one_clear_message(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="No such file"):
        using(tmp_path / "missing" / "bitinglip.db", nothing)


def test_migrations_make_just_what_the_tables_say(tmp_path: Path, path: Path) -> None:
    grown = tmp_path / "grown.db"
    upgrade(grown)
    options = {"compare_type": True, "compare_server_default": True, "render_as_batch": True}
    for file in (grown, path):
        url = URL.create("sqlite", database=str(file))
        with create_engine(url, poolclass=NullPool).connect() as connection:
            context = MigrationContext.configure(connection, opts=options)
            assert compare_metadata(context, Table.metadata) == []
    shape = "SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY name"
    assert query(grown, shape) == query(path, shape)
    assert query(grown, "SELECT * FROM alembic_version") == [(migrations.HEAD,)]


@pytest.fixture
def first_version(tmp_path: Path) -> Path:
    """Provide a database of the first version, with a key in it."""
    file = tmp_path / "bitinglip.db"
    upgrade(file, "0001")
    columns = "id, name, digest, pepper_id, last_four, scopes, tier, created_at"
    values = "'k', 'n', x'00', 'p', 'abcd', '[]', 'free', '2026-01-01 00:00:00'"
    query(file, f"INSERT INTO api_keys ({columns}) VALUES ({values})")
    return file


def test_migration_backs_an_older_schema_up(first_version: Path) -> None:
    using(first_version, nothing)
    saved = first_version.with_name(f"{first_version.name}.before-{migrations.HEAD}")
    assert query(saved, "SELECT version_num, id FROM alembic_version, api_keys") == [("0001", "k")]
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    assert query(first_version, "SELECT version_num FROM alembic_version") == [(migrations.HEAD,)]


def test_migration_keeps_the_last_copies_only(first_version: Path) -> None:
    """Each is as large as the database, and each version of the server makes one."""
    name = f"{first_version.name}.before-"
    for version in ("0001", "0002", "0003", "0004"):
        first_version.with_name(name + version).write_bytes(b"copy")
    using(first_version, nothing)
    kept = sorted(path.name for path in first_version.parent.glob(f"{name}*"))
    assert kept == [name + "0003", name + "0004", name + migrations.HEAD]


def test_migration_of_the_first_version_keeps_its_keys(first_version: Path) -> None:
    using(first_version, nothing)
    assert query(first_version, "SELECT id FROM api_keys") == [("k",)]
    assert query(first_version, "SELECT count(*) FROM tasks") == [(0,)]


def test_migration_leaves_older_keys_unnarrowed_and_in_their_first_secret(
    first_version: Path,
) -> None:
    using(first_version, nothing)
    columns = "models, ip_ranges, generation, former_digest, rotated_at, grace_until"
    found = query(first_version, f"SELECT {columns} FROM api_keys")
    assert found == [(None, None, 1, None, None, None)]


def test_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "x.db"
    query(file, "CREATE TABLE api_keys_rest AS SELECT 1 AS x")
    query(file, "CREATE TABLE api_keys AS SELECT 1 AS x")  # in the way of 0001
    with pytest.raises(exc.OperationalError, match="already exists"):
        upgrade(file)
    tables = query(file, "SELECT name FROM sqlite_master ORDER BY name")
    assert tables == [("api_keys",), ("api_keys_rest",)]


def test_alembic_stays_out_of_an_ordinary_start(path: Path) -> None:
    subprocess.run([sys.executable, "-c", START, str(path)], check=True, timeout=60)


def test_power_cut_loses_nothing_that_was_acknowledged(path: Path, tmp_path: Path) -> None:
    """A stopped process is a cut at a random instant: its files are what a new start finds."""
    answers = tmp_path / "answers"
    with (
        answers.open("w") as output,
        subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=output) as process,
    ):
        try:
            eventually(lambda: answers.read_text().count("\n") > 10)
            for cut in range(6):
                time.sleep(random.uniform(0.02, 0.3))
                os.kill(process.pid, signal.SIGSTOP)
                shutil.copytree(path.parent, tmp_path / f"cut{cut}")
                acknowledged = set(answers.read_text().rpartition("\n")[0].split())
                os.kill(process.pid, signal.SIGCONT)
                assert acknowledged <= _ids(tmp_path / f"cut{cut}" / path.name)
        finally:
            process.kill()
    assert len(acknowledged) > 10


def _ids(path: Path) -> set[str]:
    found: set[str] = set()

    async def act(database: Database) -> None:
        async with database.read() as session:
            found.update(await session.scalars(select(Table.metadata.tables["api_keys"].c.id)))
            audited = "SELECT target FROM audit_log WHERE action = 'key.create'"
            assert set(await session.scalars(text(audited))) == found
            assert (await session.execute(text("PRAGMA integrity_check"))).scalar() == "ok"
        assert verify_file(path, b"k" * 32).valid

    using(path, act)
    return found
