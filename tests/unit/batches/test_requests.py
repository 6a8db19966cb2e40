"""Requests of batches wait for what cannot be had or asked for now."""

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from bitinglip.access.keys import Caller
from bitinglip.access.scopes import Scope
from bitinglip.batches.requests import Requests
from bitinglip.settings import Settings
from tests.support.redis import RedisServer
from tests.support.shared_limits import Gateway, gateways
from tests.support.wait import until

CALLER = Caller("k", "k", "free", frozenset({Scope.TEXT}))
NONE = cast("Any", None)


class _RatesWereTaken(Exception):
    """The request was read, which comes after its rates."""


def _requests(own: Gateway) -> Requests:
    """Return requests that get as far as their rates."""
    return Requests(Settings(), NONE, NONE, NONE, NONE, own.admission, NONE, NONE, lambda: None)


async def _read() -> bytes:
    raise _RatesWereTaken


def test_batch_request_waits_while_limits_cannot_be_checked(
    tmp_path: Path, redis: RedisServer
) -> None:
    async def lose() -> None:
        options = {"timeout_ms": 200, "when_away": "refuse"}
        async with asyncio.timeout(60), gateways(tmp_path, 1, redis.url, redis=options) as [own]:
            redis.kill()
            answer = _requests(own).answer(lambda: CALLER, "/v1/completions", _read, "r")
            line = asyncio.create_task(answer)
            await until(lambda: line.done() or (own.link is not None and own.link.away))
            redis.start()
            with pytest.raises(_RatesWereTaken):
                await line

    try:
        asyncio.run(lose())
    finally:
        redis.kill()
        redis.start()
