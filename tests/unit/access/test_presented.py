"""Credentials that were found good, and are known again."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from bitinglip.access.keys import KeyRing
from bitinglip.access.presented import Presented
from bitinglip.audit.log import AuditLog
from bitinglip.db.database import Database
from bitinglip.errors import ExpiredApiKey, InvalidApiKey
from bitinglip.home import Home


def test_presented_credential_is_found_again_until_it_is_forgotten() -> None:
    presented: Presented[int] = Presented()
    presented.remember("one", 1)
    assert (presented.find("one"), presented.find("One"), presented.find("one ")) == (1, None, None)
    presented.forget()
    assert presented.find("one") is None


def test_presented_credentials_are_bounded() -> None:
    presented: Presented[int] = Presented(most=3)
    for number in range(10):
        presented.remember(f"key {number}", number)
    assert len(presented) == 3
    assert [presented.find(f"key {number}") for number in (6, 7, 8, 9)] == [None, 7, 8, 9]


def test_presented_credentials_are_not_kept_as_text() -> None:
    presented: Presented[int] = Presented()
    presented.remember("a secret of a key", 1)
    assert "a secret" not in repr(vars(presented))
    other: Presented[int] = Presented()
    other.remember("a secret of a key", 1)
    assert vars(presented)["_found"].keys() != vars(other)["_found"].keys()


def test_presented_key_is_checked_again_after_every_change(tmp_path: Path) -> None:
    """Revocation, rotation and the end of a grace act on the next request, remembered or not."""

    async def act() -> None:
        home = Home(tmp_path / "home")
        home.create()
        db = await Database.open(home.database)
        try:
            ring = await KeyRing.open(db, b"p" * 32, AuditLog(db, b"p" * 32))
            record, first = await ring.create(name="a")
            for _ in range(2):
                assert ring.authenticate(first).generation == 1
            _, second = await ring.rotate(record.id, timedelta(hours=1), home)
            for _ in range(2):
                assert ring.authenticate(first).retiring is not None
                assert ring.authenticate(second).retiring is None
            _, third = await ring.rotate(record.id, timedelta(0), home)
            for _ in range(2):
                with pytest.raises(InvalidApiKey):
                    ring.authenticate(first)
                with pytest.raises(ExpiredApiKey):
                    ring.authenticate(second)
            assert ring.authenticate(third).tier == "free"
            await ring.change(record.id, tier="pro")
            assert ring.authenticate(third).tier == "pro"
            await ring.revoke(record.id)
            with pytest.raises(InvalidApiKey):
                ring.authenticate(third)
        finally:
            await db.close()

    asyncio.run(act())


def test_presented_key_that_is_wrong_is_never_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act() -> None:
        home = Home(tmp_path / "home")
        home.create()
        db = await Database.open(home.database)
        try:
            ring = await KeyRing.open(db, b"p" * 32, AuditLog(db, b"p" * 32))
            _, key = await ring.create(name="a")
            for _ in range(3):
                with pytest.raises(InvalidApiKey):
                    ring.authenticate(key[:-1] + ("0" if key[-1] != "0" else "1"))
            assert len(vars(ring)["_presented"]) == 0
            ring.authenticate(key)
            monkeypatch.setattr(ring, "_look_up", None)  # a second look-up would fail
            assert ring.authenticate(key).name == "a"
        finally:
            await db.close()

    asyncio.run(act())
