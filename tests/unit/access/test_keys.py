"""The key ring, on a real database."""

import asyncio
import random
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bitinglip.access import credentials
from bitinglip.access.keys import KeyRing, refuse_other_pepper
from bitinglip.access.scopes import DEFAULT, Scope
from bitinglip.audit.log import AuditLog
from bitinglip.db.database import Database
from bitinglip.db.files import DatabaseError
from bitinglip.errors import (
    DatabaseUnavailable,
    ExpiredApiKey,
    InvalidApiKey,
    InvalidRequest,
    KeyNotFound,
)
from bitinglip.home import Home
from tests.support.logs import CaughtLogs

PEPPER = b"p" * 32
Act = Callable[[KeyRing], Awaitable[None]]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    return home


def using(home: Home, act: Act, pepper: bytes = PEPPER) -> None:
    """Run one life of a server: open the ring, act, close."""

    async def run() -> None:
        database = await Database.open(home.database)
        try:
            await act(await KeyRing.open(database, pepper, AuditLog(database, pepper)))
        finally:
            await database.close()

    asyncio.run(run())


def test_key_works_at_once_and_after_a_restart(home: Home) -> None:
    made: list[str] = []

    async def first(ring: KeyRing) -> None:
        record, key = await ring.create(name="laptop", tier="pro")
        made.extend((record.id, key))
        assert (record.last_four, record.name, record.tier) == (key[-4:], "laptop", "pro")
        assert set(record.scopes) == DEFAULT
        assert ring.authenticate(key).key_id == record.id

    async def second(ring: KeyRing) -> None:
        caller = ring.authenticate(made[1])
        assert (caller.key_id, caller.name, caller.tier) == (made[0], "laptop", "pro")
        assert caller.may(Scope.TEXT)
        assert not caller.may(Scope.CLUSTER_WRITE)
        assert not caller.may(Scope.ADMIN)
        assert [record.id for record in ring.list()] == [made[0]]
        assert ring.get(made[0]).created_at.tzinfo is UTC

    using(home, first)
    using(home, second)
    for file in home.root.iterdir():
        assert file.is_dir() or made[1].encode() not in file.read_bytes()


def test_scope_admin_implies_every_other(home: Home) -> None:
    async def act(ring: KeyRing) -> None:
        _, key = await ring.create(name="a", scopes=["admin"])
        assert all(ring.authenticate(key).may(scope) for scope in Scope)

    using(home, act)


def test_key_that_is_invalid_is_refused(home: Home) -> None:
    async def act(ring: KeyRing) -> None:
        record, key = await ring.create(name="a")
        stranger = credentials.make().text
        body = f"blk_live_{record.id}_{stranger[22:65]}"
        impostor = body + credentials._checksum(body)
        assert credentials.parse(impostor) == record.id
        for wrong in ("", key[:-1], key + "x", key.swapcase(), stranger, impostor, "é" * 71):
            with pytest.raises(InvalidApiKey) as caught:
                ring.authenticate(wrong)
            assert caught.value.message == InvalidApiKey.__doc__
        assert ring.get(record.id).last_used_at is None

    using(home, act)


def test_revocation_holds_at_once_and_for_ever(home: Home) -> None:
    keys: list[str] = []

    async def first(ring: KeyRing) -> None:
        record, key = await ring.create(name="a")
        keys.append(key)
        revoked = await ring.revoke(record.id)
        with pytest.raises(InvalidApiKey):
            ring.authenticate(key)
        assert revoked.revoked_at is not None
        assert await ring.revoke(record.id) == revoked == ring.get(record.id)
        for call in (ring.revoke("nobody"), ring.revoke("' OR 1=1 --")):
            with pytest.raises(KeyNotFound):
                await call

    async def second(ring: KeyRing) -> None:
        with pytest.raises(InvalidApiKey):
            ring.authenticate(keys[0])
        assert len(ring.list()) == 1

    using(home, first)
    using(home, second)


def test_pepper_that_made_no_key_of_a_shared_database_is_refused(home: Home) -> None:
    async def run() -> None:
        database = await Database.open(home.database)
        try:
            await refuse_other_pepper(database, b"another")  # there is no key yet
            ring = await KeyRing.open(database, PEPPER, AuditLog(database, PEPPER))
            record, _ = await ring.create(name="a")
            await refuse_other_pepper(database, PEPPER)
            with pytest.raises(DatabaseError, match=r"gateways\.secret_file"):
                await refuse_other_pepper(database, b"another")
            await ring.revoke(record.id)
            await refuse_other_pepper(database, b"another")
        finally:
            await database.close()

    asyncio.run(run())


@pytest.mark.sqlite
def test_revocation_holds_although_the_disk_fails(home: Home) -> None:
    async def run() -> None:
        database = await Database.open(home.database)
        ring = await KeyRing.open(database, PEPPER, AuditLog(database, PEPPER))
        record, key = await ring.create(name="a")
        async with database.write() as session:
            connection = await session.connection()
            await connection.exec_driver_sql("PRAGMA query_only = ON")
        with pytest.raises(DatabaseUnavailable, match="read-only"):
            await ring.revoke(record.id)
        with pytest.raises(InvalidApiKey):
            ring.authenticate(key)
        with pytest.raises(DatabaseUnavailable, match="read-only"):
            await ring.create(name="b")
        assert [held.name for held in ring.list()] == ["a"]
        await database.close()

    asyncio.run(run())


def test_key_expires(home: Home) -> None:
    async def act(ring: KeyRing) -> None:
        _, long = await ring.create(name="a", expires_at=datetime.now(UTC) + timedelta(hours=1))
        soon = datetime.now(UTC) + timedelta(seconds=0.2)
        _, short = await ring.create(name="b", expires_at=soon)
        await asyncio.sleep(0.25)
        ring.authenticate(long)
        with pytest.raises(ExpiredApiKey):
            ring.authenticate(short)

    using(home, act)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "   "),
        ("name", "x" * 101),
        ("name", "a\x1b[2Jb"),
        ("tier", "gold"),
        ("scopes", ["everything"]),
        ("scopes", []),
        ("expires", datetime(2001, 1, 1, tzinfo=UTC)),
    ],
)
def test_key_with_wrong_fields_is_refused_and_leaves_nothing(
    home: Home, field: str, value: object
) -> None:
    async def act(ring: KeyRing) -> None:
        load_config = {"name": "a", {"expires": "expires_at"}.get(field, field): value}
        with pytest.raises(InvalidRequest) as caught:
            await ring.create(**load_config)  # type: ignore[arg-type]
        assert caught.value.param == field
        assert ring.list() == []

    using(home, act)


def test_admin_key_is_made_once_at_the_first_start(home: Home) -> None:
    async def first(ring: KeyRing) -> None:
        home.admin_key.write_text("left by a start that was cut short")
        key = await ring.ensure_admin_key(home)
        assert key is not None
        assert home.admin_key.read_text() == f"{key}\n"
        assert home.admin_key.stat().st_mode & 0o777 == 0o600
        caller = ring.authenticate(key)
        assert (caller.tier, caller.may(Scope.ADMIN)) == ("operator", True)
        assert await ring.ensure_admin_key(home) is None
        await ring.revoke(caller.key_id)

    async def second(ring: KeyRing) -> None:
        assert await ring.ensure_admin_key(home) is None

    using(home, first)
    using(home, second)


def test_last_use_is_kept_in_batches(home: Home) -> None:
    async def first(ring: KeyRing) -> None:
        (a, key), (b, _) = await ring.create(name="a"), await ring.create(name="b")
        ring.authenticate(key)
        used = ring.get(a.id).last_used_at
        assert used is not None
        await ring.flush_last_used()
        assert ring.get(a.id).last_used_at == used
        assert ring.get(b.id).last_used_at is None
        await ring.flush_last_used()

    async def second(ring: KeyRing) -> None:
        assert [record.last_used_at is None for record in ring.list()] == [False, True]

    using(home, first)
    using(home, second)


def test_pepper_that_is_lost_ends_all_keys_and_the_log_says_so(
    home: Home, caplog: CaughtLogs
) -> None:
    keys: list[str] = []

    async def make(ring: KeyRing) -> None:
        keys.append((await ring.create(name="a"))[1])

    async def use(ring: KeyRing) -> None:
        with pytest.raises(InvalidApiKey):
            ring.authenticate(keys[0])

    using(home, make)
    using(home, use, pepper=b"another" * 5)
    assert "1 keys work no more" in caplog.text


@pytest.mark.sqlite
@pytest.mark.parametrize(
    "damage", ["scopes = '[\"adm'", "created_at = 'once'", "name = CAST(x'ff' AS TEXT)"]
)
def test_record_that_is_damaged_stops_the_start(home: Home, damage: str) -> None:
    async def make(ring: KeyRing) -> None:
        await ring.create(name="a")

    using(home, make)
    with closing(sqlite3.connect(home.database)) as connection, connection:
        connection.execute(f"UPDATE api_keys SET {damage}")
    with pytest.raises(DatabaseError, match="damaged"):
        using(home, make)


@pytest.mark.sqlite
def test_database_with_flipped_bytes_ends_in_one_clear_message_or_in_nothing(home: Home) -> None:
    async def make(ring: KeyRing) -> None:
        for number in range(20):
            await ring.create(name=f"key {number}")

    async def look(ring: KeyRing) -> None:
        ring.list()

    using(home, make)
    sound = home.database.read_bytes()
    chance, messages = random.Random(4), []
    for _ in range(100):
        data = bytearray(sound)
        for _ in range(chance.choice([1, 8, 64])):
            data[chance.randrange(len(data))] = chance.randrange(256)
        home.database.write_bytes(data)
        try:
            using(home, look)
        except DatabaseError as error:
            messages.append(str(error))
    assert len(messages) > 30
    assert not [message for message in messages if "\n" in message or "damaged" not in message]
