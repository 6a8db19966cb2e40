"""A start enters its settings in the audit log, and the daily check tells what it found."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from bitinglip.audit.entry import now
from bitinglip.audit.log import DAY
from bitinglip.audit.start import begin, clean_up
from bitinglip.db.database import Database
from bitinglip.home import Home
from bitinglip.parts import _open_audit
from bitinglip.settings import Settings
from bitinglip.telemetry.health import Health
from tests.support.audit_log import entries, using
from tests.support.other_program import change, rows


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bitinglip.db"


def starts(path: Path, *all_values: dict[str, Any]) -> list[dict[str, Any]]:
    with using(path) as (run, audit):
        for values in all_values:
            run(begin(audit, Settings.model_validate(values)))
        return entries(run, audit)[::-1]


@pytest.mark.sqlite
def test_audit_of_settings_holds_no_password_of_an_address(path: Path) -> None:
    secret = {"hub": {"endpoint": "https://me:hunter2@mirror.example/x"}}
    other = {"hub": {"endpoint": "https://me:hunter2@other.example/x"}}
    first, second, change = starts(path, secret, other)
    assert first["after"]["settings"] == {"hub.endpoint": "https://***@mirror.example/x"}
    assert second["after"]["ended_without_stop"] == first["entry"]
    assert change["after"] == {"hub.endpoint": "https://***@other.example/x"}
    assert b"hunter2" not in path.read_bytes()


def test_audit_of_equal_settings_tells_no_change(path: Path) -> None:
    values = {"queue": {"max_waiting": 3}, "models": {"m": {"pin": True}}}
    rows = starts(path, values, values)
    assert [row["action"] for row in rows] == ["server.start"] * 2
    assert rows[0]["after"]["settings"] == {"queue.max_waiting": 3, "models.m.pin": True}


def test_audit_of_very_many_settings_tells_their_digest(path: Path) -> None:
    many = {"models": {f"model-{number}": {"pin": True} for number in range(500)}}
    rows = starts(path, many, many, {})
    assert "settings" not in rows[0]["after"]
    assert [row["action"] for row in rows] == ["server.start"] * 3 + ["settings.change"]
    assert rows[3]["before"] == {"settings_sha256": rows[0]["after"]["settings_sha256"]}


def test_audit_of_a_stop_tells_its_own_time(path: Path) -> None:
    home = Home(path.parent / "home")
    home.create()
    stopped_after = 0

    async def run() -> None:
        nonlocal stopped_after
        db = await Database.open(path)
        try:
            async with AsyncExitStack() as stack:
                await _open_audit(Settings(), home, db, "", stack)
                stopped_after = now()
        finally:
            await db.close()

    asyncio.run(run())
    [stop] = rows(path, "SELECT at FROM audit_log WHERE action = 'server.stop'")
    assert stop["at"] >= stopped_after


def test_audit_log_that_is_not_whole_degrades_the_health_until_it_is(path: Path) -> None:
    health = Health()
    with using(path, days=1) as (run, audit):
        run(begin(audit, Settings()))
        run(begin(audit, Settings()))
        run(clean_up(audit, health))
        assert not health.problems()
        change(path, f"UPDATE audit_log SET at = at - {int(2 * DAY * 1e6)} WHERE seq = 1")
        # It is too old now, so it goes; that it was changed stays known.
        run(clean_up(audit, health))
        assert [row["entry"] for row in entries(run, audit)] == [4, 3, 2]
        assert "entry 1 was changed, removed or forged" in health.problems()["database"]
        change(path, "DELETE FROM audit_log", "DELETE FROM audit_head")
        run(clean_up(audit, health))
        assert not health.problems()
