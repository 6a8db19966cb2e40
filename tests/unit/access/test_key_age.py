"""Secrets that grow old, under a clock of the test's own, on a real database."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bitinglip.access import key_age
from bitinglip.access.key_age import KeyAge, Rotation
from bitinglip.access.keys import KeyRing
from bitinglip.access.tokens import Tokens
from bitinglip.api.auth import retirement_headers
from bitinglip.audit.log import AuditLog
from bitinglip.db.database import Database
from bitinglip.errors import ExpiredApiKey, InvalidToken
from bitinglip.home import Home
from bitinglip.settings import KeyRotation
from bitinglip.wire.admin.keys import key_info
from tests.support.logs import capture_log

PEPPER = b"p" * 32
DAY = 86_400.0
RULE = KeyRotation.model_validate({"max_age": "90d", "notice": "14d"})


class Clock:
    """Begins now: a key's creation is by the system's clock."""

    def __init__(self) -> None:
        self.begin = datetime.now(UTC).timestamp()
        self.days = 0.0

    def __call__(self) -> float:
        return self.begin + self.days * DAY


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    return home


def using(
    home: Home, clock: Clock, act: Callable[[KeyRing], Awaitable[None]], rule: Any = RULE
) -> None:
    async def run() -> None:
        database = await Database.open(home.database)
        try:
            audit = AuditLog(database, PEPPER)
            await act(await KeyRing.open(database, PEPPER, audit, age=KeyAge(rule), clock=clock))
        finally:
            await database.close()

    asyncio.run(run())


def test_rotation_is_announced_and_then_due(home: Home, clock: Clock) -> None:
    async def act(ring: KeyRing) -> None:
        record, key = await ring.create(name="n")
        made = record.created_at
        assert record.rotate_by == made + timedelta(days=90)
        assert key_info(record)["rotate_by"].startswith(str(record.rotate_by.date()))
        for clock.days in (0.0, 75.9):
            assert retirement_headers(ring.authenticate(key)) == ()
        clock.days = 76.1
        headers = dict(retirement_headers(ring.authenticate(key)))
        assert headers[b"deprecation"] == b"@%d" % (made + timedelta(days=76)).timestamp()
        end = (made + timedelta(days=90)).strftime("%d %b %Y %H:%M:%S GMT").encode()
        assert headers[b"sunset"].endswith(end)
        clock.days = 89.9
        caller = ring.authenticate(key)
        assert ring.is_valid(caller.credential)
        clock.days = 90.1
        with pytest.raises(ExpiredApiKey):
            ring.authenticate(key)
        assert not ring.is_valid(caller.credential)  # which ends its open work
        _, new = await ring.rotate(record.id, timedelta(), home)
        assert retirement_headers(ring.authenticate(new)) == ()
        assert ring.get(record.id).rotate_by == datetime.fromtimestamp(clock(), UTC) + timedelta(90)

    using(home, clock, act)


def test_rotation_counts_from_the_last_one_and_over_restarts(home: Home, clock: Clock) -> None:
    kept: list[str] = []

    async def first(ring: KeyRing) -> None:
        record, _ = await ring.create(name="n")
        clock.days = 80
        kept.append((await ring.rotate(record.id, timedelta(hours=1), home))[1])

    async def second(ring: KeyRing) -> None:
        clock.days = 150
        assert retirement_headers(ring.authenticate(kept[0])) == ()
        clock.days = 160
        assert retirement_headers(ring.authenticate(kept[0])) != ()
        clock.days = 171
        with pytest.raises(ExpiredApiKey):
            ring.authenticate(kept[0])

    using(home, clock, first)
    using(home, clock, second)


def test_rotation_by_age_yields_to_an_earlier_expiry_and_is_off_by_default(
    home: Home, clock: Clock
) -> None:
    async def on(ring: KeyRing) -> None:
        _, brief = await ring.create(name="n", expires_at=datetime.now(UTC) + timedelta(days=10))
        clock.days = 11
        with pytest.raises(ExpiredApiKey):
            ring.authenticate(brief)

    async def off(ring: KeyRing) -> None:
        record, key = await ring.create(name="n")
        clock.days = 10_000
        assert (record.rotate_by, retirement_headers(ring.authenticate(key))) == (None, ())

    using(home, clock, on)
    using(home, clock, off, KeyRotation())


def test_rotation_due_holds_for_tokens_of_the_key(home: Home, clock: Clock) -> None:
    async def run() -> None:
        database = await Database.open(home.database)
        rule = KeyRotation(max_age=600, notice=300)
        audit = AuditLog(database, PEPPER)
        ring = await KeyRing.open(database, PEPPER, audit, age=KeyAge(rule), clock=clock)
        tokens = await Tokens.open(database, ring, bytes(32), audit)
        record, key = await ring.create(name="n")
        clock.begin = record.created_at.timestamp()  # databases may have taken seconds to open
        clock.days = 400 / DAY
        token = tokens.issue(ring.authenticate(key))
        assert token.expires_in <= 600  # not the 15 minutes of other tokens
        assert retirement_headers(tokens.authenticate(token.text)) != ()
        clock.days = 601 / DAY
        with pytest.raises(InvalidToken):
            tokens.authenticate(token.text)
        await database.close()

    asyncio.run(run())


def test_rotation_of_the_admin_key_is_done_by_the_server(
    home: Home, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = capture_log(monkeypatch, key_age)

    def warnings() -> list[str]:
        """Return what was warned of since the last call."""
        lines = [line["event"] for line in told.entries if line["log_level"] == "warning"]
        told.entries.clear()
        return lines

    async def act(ring: KeyRing) -> None:
        old = await ring.ensure_admin_key(home)
        assert old is not None
        other, _ = await ring.create(name="laptop")
        rotation = Rotation(ring, KeyAge(RULE), home, clock)

        def held() -> str:
            return home.admin_key.read_text().strip()

        clock.days = 75
        await rotation.check()
        assert held() == old
        assert not warnings()
        clock.days = 77
        for _ in range(2):
            await rotation.check()
        assert held() != old
        assert ring.authenticate(held()).retiring is None
        assert ring.authenticate(old).retiring is not None  # as long as it would have lived
        assert warnings() == ["an API key is to be rotated"]
        clock.days = 91
        await rotation.check()
        with pytest.raises(ExpiredApiKey):
            ring.authenticate(old)
        assert "an API key has ended by its age" in warnings()
        await ring.revoke(other.id)
        # The server was off for longer than all of that.
        clock.days = 400
        assert ring.get(ring.list()[0].id).rotate_by is not None
        with pytest.raises(ExpiredApiKey):
            ring.authenticate(held())
        await rotation.check()
        assert ring.authenticate(held()).retiring is None
        assert not warnings()

    using(home, clock, act)


def test_rotation_leaves_an_admin_key_alone_that_has_another_end(home: Home, clock: Clock) -> None:
    async def act(ring: KeyRing) -> None:
        old = await ring.ensure_admin_key(home)
        (record,) = ring.list()
        rotation = Rotation(ring, KeyAge(RULE), home, clock)
        await ring.change(record.id, expires_at=datetime.now(UTC) + timedelta(days=20))
        clock.days = 80
        await rotation.check()
        await ring.change(record.id, expires_at=None)
        await ring.revoke(record.id)
        await rotation.check()
        home.admin_key.unlink()
        await rotation.check()
        assert ring.list()[0].rotated_at is None
        assert old is not None

    using(home, clock, act)


def test_rotation_notice_is_shorter_than_the_age() -> None:
    for wrong in ({"notice": "1d"}, {"max_age": "1d", "notice": "1d"}, {"max_age": 0}):
        with pytest.raises(ValidationError):
            KeyRotation.model_validate(wrong)
    made = datetime(2026, 1, 1, tzinfo=UTC)
    quarter = KeyAge(KeyRotation(max_age=8 * DAY)).of(made, None)
    assert quarter == (made + timedelta(days=6), made + timedelta(days=8))
    long = KeyAge(KeyRotation(max_age=365 * DAY)).of(made, None)
    assert long is not None
    assert long.until - long.since == timedelta(days=14)
