"""Stored responses: their retention, their bounds, and the order of their items."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from bitinglip import errors
from bitinglip.db.database import Database
from bitinglip.disk_space import DiskSpace
from bitinglip.scheduling.event_log import EventLog
from bitinglip.tasks import responses
from bitinglip.tasks.responses import JsonObject, Responses

ITEM: JsonObject = {"id": "msg_0", "type": "message"}


def _describe(response: Mapping[str, Any], _event_log: EventLog) -> JsonObject:
    return {**response, "status": "completed"}


def _using(
    tmp_path: Path,
    act: Callable[[Responses], Awaitable[None]],
    *,
    retention: float = 60,
    max_bytes: int = 10**6,
    min_free: int = 0,
) -> None:
    async def run() -> None:
        db = await Database.open(tmp_path / "bitinglip.db")
        space = DiskSpace(tmp_path, min_free)
        try:
            async with asyncio.timeout(60):
                await act(
                    Responses(db, _describe, retention=retention, max_bytes=max_bytes, space=space)
                )
        finally:
            await db.close()

    asyncio.run(run())


def _response(number: int, status: str = "completed", **more: Any) -> JsonObject:
    made = {"id": f"resp_{number}", "model": "m", "status": status, "output": [], **more}
    return {"created_at": 1_700_000_000, **made}


async def _chain(kept: Responses, length: int, key_id: str = "k") -> None:
    for number in range(length):
        previous = f"resp_{number - 1}" if number else None
        await kept.add(key_id, [ITEM], _response(number), previous_id=previous)


def test_conversation_has_its_turns_in_order(tmp_path: Path) -> None:
    async def act(kept: Responses) -> None:
        await _chain(kept, 4)
        turns = await kept.turns("resp_3", "k")
        assert [turn.id for turn in turns] == [f"resp_{number}" for number in range(4)]
        assert turns[0].input == [ITEM]
        assert len(await kept.turns("resp_1", None)) == 2

    _using(tmp_path, act)


def test_conversation_with_a_gap_another_s_turn_or_an_open_one_is_refused(tmp_path: Path) -> None:
    async def act(kept: Responses) -> None:
        await _chain(kept, 3)
        await kept.add("k", [], _response(9, "in_progress"))
        await kept.delete("resp_1", "task-1")
        for response_id, key_id in [
            ("resp_2", "k"),
            ("resp_0", "other"),
            ("resp_9", "k"),
            ("x", "k"),
        ]:
            with pytest.raises(errors.InvalidRequest) as refused:
                await kept.turns(response_id, key_id)
            assert refused.value.param == "previous_response_id"

    _using(tmp_path, act)


def test_conversation_that_holds_too_much_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(kept: Responses) -> None:
        await _chain(kept, 4)
        monkeypatch.setattr(responses, "MOST_TURNS", 3)
        assert len(await kept.turns("resp_2", "k")) == 3
        with pytest.raises(errors.ContextLengthExceeded):
            await kept.turns("resp_3", "k")
        monkeypatch.setattr(responses, "MOST_BYTES", 100)
        with pytest.raises(errors.ContextLengthExceeded):
            await kept.turns("resp_0", "k")

    _using(tmp_path, act)


def test_responses_that_are_too_old_are_hidden_and_removed(tmp_path: Path) -> None:
    async def act(kept: Responses) -> None:
        await _chain(kept, 1)
        await kept.add("k", [], _response(1, "queued"))
        kept._retention.seconds = -60
        for ask in (kept.get("resp_0"), kept.turns("resp_0", "k")):
            with pytest.raises(errors.BitingLipError):
                await ask
        await kept.clean()
        kept._retention.seconds = 60
        with pytest.raises(errors.NotFound):
            await kept.get("resp_0")
        assert (await kept.get("resp_1")).status == "queued"

    _using(tmp_path, act)


def test_key_that_holds_most_loses_its_oldest_responses_first(tmp_path: Path) -> None:
    async def act(kept: Responses) -> None:
        await kept.add("small", [], _response(100))
        await _chain(kept, 5)
        await kept.clean()
        assert (await kept.get("resp_100")).key_id == "small"
        assert (await kept.get("resp_4")).key_id == "k"
        with pytest.raises(errors.NotFound):
            await kept.get("resp_0")

    _using(tmp_path, act, max_bytes=2000)


def test_response_is_refused_before_it_is_made_where_the_disk_is_full(tmp_path: Path) -> None:
    async def act(kept: Responses) -> None:
        with pytest.raises(errors.DiskFull):
            await kept.check_space([ITEM])

    _using(tmp_path, act, min_free=2**60)
