"""A line of the log for each request, with ids and without secrets."""

import io
import json
import logging
from collections.abc import Callable
from typing import Any, cast

import pytest

from bitinglip.access import credentials
from bitinglip.settings import Logging
from bitinglip.telemetry import logs
from bitinglip.telemetry.last_requests import Row
from bitinglip.telemetry.request_lines import (
    MOST_WAITING,
    STRANGERS_PER_SECOND,
    RequestLines,
    write_line,
)
from tests.support.wait import eventually

KEY = credentials.make().text
Write = Callable[..., None]


def row(**fields: Any) -> Row:
    values: dict[str, Any] = {
        "ended": 1_800_000_000.25,
        "request_id": "req-1",
        "method": "POST",
        "endpoint": "/v1/embeddings",
        "status": 200,
        "seconds": 0.0123456789,
        "key_id": "AbC",
        "model": "demo",
        "job_id": "task-1",
    }
    made = tuple({**values, **fields}.values())
    return cast("Row", made)


def lines(rows: list[Row], trace: str | None = None, **settings: Any) -> list[str]:
    """Return what is logged of requests that end."""
    stream = io.StringIO()
    stop = logs.configure(Logging(**{"format": "json", **settings}), stream)
    try:
        for each in rows:
            write_line(str(each[3]), each, trace)
    finally:
        stop()
    return stream.getvalue().splitlines()


def test_request_line_has_ids_and_times() -> None:
    [line] = lines([row()], "0af7")
    assert json.loads(line) == {
        "event": "request",
        "method": "POST",
        "endpoint": "/v1/embeddings",
        "status": 200,
        "seconds": 0.012346,
        "request_id": "req-1",
        "key": "AbC",
        "model": "demo",
        "task": "task-1",
        "trace_id": "0af7",
        "level": "info",
        "logger": "bitinglip.requests",
        "timestamp": "2027-01-15T08:00:00.250000Z",
    }


def test_request_line_holds_no_secret_and_is_one_line() -> None:
    [line] = lines([row(request_id=KEY, method="A\nB" + "x" * 100)])
    assert KEY[22:] not in line
    assert "x" * 20 not in line
    [line] = lines([row(request_id=KEY, method="A\nB")], format="console")
    assert KEY[22:] not in line


@pytest.mark.parametrize("endpoint", ["/livez", "/metrics", "/api/v1/cluster/events"])
def test_request_line_is_not_written_for_probes(endpoint: str) -> None:
    assert lines([row(endpoint=endpoint)]) == []


@pytest.mark.parametrize("settings", [{"requests": False}, {"level": "warning"}])
def test_request_line_is_not_written_where_the_settings_say_so(settings: dict[str, Any]) -> None:
    assert lines([row()], **settings) == []


def test_request_lines_about_strangers_are_limited_and_counted() -> None:
    flood = [row(key_id=None, status=401) for _ in range(STRANGERS_PER_SECOND + 30)]
    later = row(key_id=None, status=401, ended=1_800_000_001.0)
    written = [json.loads(line) for line in lines([*flood, row(), later])]
    assert len(written) == STRANGERS_PER_SECOND + 2
    assert written[-1]["suppressed"] == 30
    assert not logging.getLogger().filters


def test_request_line_is_for_a_person_on_a_terminal() -> None:
    [line] = lines([row()], format="console")
    assert line.startswith("08:00:00 info    request  method=POST")


class _Broken(io.StringIO):
    """Takes nothing while it is broken, as a pipe without a reader or a full disk."""

    broken = True

    def write(self, text: str) -> int:
        if self.broken:
            raise OSError
        return super().write(text)


def test_request_lines_come_again_after_a_reader_that_was_away() -> None:
    stream = _Broken()
    lost = logs.dropped_lines()
    stop = logs.configure(Logging(format="json"), stream)
    try:
        for number in range(1, 4):  # the second fails as it would tell of the first
            write_line("/v1/embeddings", row(), None)
            write_line("/v1/embeddings", row(), None)
            want = lost + 2 * number
            eventually(lambda want=want: logs.dropped_lines() == want, 5)
        stream.broken = False
        write_line("/v1/embeddings", row(request_id="req-later"), None)
    finally:
        stop()
    notice, line = map(json.loads, stream.getvalue().splitlines())
    assert notice["event"] == "6 log lines were dropped"
    assert line["request_id"] == "req-later"


def test_request_lines_that_wait_are_one_entry_of_the_queue_and_bounded() -> None:
    queue: list[RequestLines] = []
    dropped: list[None] = []
    waiting = RequestLines(
        queue.append,
        lambda lines: "\n".join(line.request_id for line in lines),
        lambda: dropped.append(None),
    )
    waiting.close()  # they are asked for at once
    for number in range(MOST_WAITING + 3):
        waiting.write("/v1/embeddings", row(request_id=f"req-{number}"), None)
    assert queue == [waiting]
    assert len(dropped) == 3
    assert waiting.getMessage().splitlines() == [f"req-{n}" for n in range(MOST_WAITING)]
    waiting.write("/v1/embeddings", row(request_id="req-later"), None)
    assert queue == [waiting, waiting]
    assert waiting.getMessage() == "req-later"
