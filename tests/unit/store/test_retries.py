"""Waits before the hub is asked again."""

import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from model_store.hub.retries import Patience, asked_pause


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {"Retry-After": "7"}, 7),
        (503, {"Retry-After": " 7 "}, 7),
        (429, {"Retry-After": "99999999999999999999"}, 300),
        (429, {"Retry-After": "-5"}, 0),
        (429, {"Retry-After": "soon"}, 0),
        (429, {"Retry-After": "٣"}, 0),
        (429, {"RateLimit": '"resolvers";r=0;t=55'}, 55),
        (503, {"RateLimit": '"resolvers";r=0;t=55'}, 0),
        (429, {"Retry-After": "Fri, 01 Jan 2010 00:00:00 GMT"}, 0),
        (429, {}, 0),
    ],
)
def test_retry_waits_as_long_as_the_answer_asks(
    status: int, headers: dict[str, str], seconds: float
) -> None:
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    assert asked_pause(httpx.Response(status, headers=encoded)) == seconds


def test_retry_waits_until_a_moment() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 30 < asked_pause(httpx.Response(429, headers={"Retry-After": soon})) <= 60
    assert asked_pause(None) == 0


def test_retry_gives_up_after_failures_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    monkeypatch.setattr("model_store.hub.retries.nap", lambda _, seconds: naps.append(seconds))
    patience = Patience(threading.Event())
    for _ in range(20):
        assert patience.failed()
        patience.progressed()
    while patience.failed():
        patience.rest()
    assert 3 <= len(naps) <= 10
    assert all(0 < nap <= 8 for nap in naps)
    assert naps[-1] > 2 * naps[0]


def test_retry_ends_when_the_pull_is_stopped() -> None:
    stopped = threading.Event()
    stopped.set()
    Patience(stopped).rest(httpx.Response(429, headers={"Retry-After": "300"}))
