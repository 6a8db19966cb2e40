"""The rate limit of the log: equal lines are cut, counted, and counted aloud."""

import io
import json
import logging

import structlog

from bitinglip.settings import Logging
from bitinglip.telemetry import logs
from bitinglip.telemetry.rate_limit import LINES_PER_SECOND, RepeatLimit


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def record(message: object, name: str = "ours") -> logging.LogRecord:
    return logging.LogRecord(name, logging.WARNING, "", 0, message, (), None)


def test_rate_limit_passes_so_many_lines_of_a_message_a_second() -> None:
    clock = Clock()
    limit = RepeatLimit(clock)
    passed = [limit.filter(record("refused %s")) for _ in range(LINES_PER_SECOND + 30)]
    assert passed == [True] * LINES_PER_SECOND + [False] * 30
    assert limit.filter(record("another message"))
    clock.now += 1.0
    again = record("refused %s")
    assert limit.filter(again)
    assert "30 more" in str(again.msg)
    after = record("refused %s")
    assert limit.filter(after)
    assert after.msg == "refused %s"


def test_rate_limit_tells_the_count_as_a_field_of_structlog() -> None:
    clock = Clock()
    limit = RepeatLimit(clock)
    for _ in range(LINES_PER_SECOND + 5):
        limit.filter(record({"event": "request failed"}))
    clock.now += 2.0
    told = record({"event": "request failed"})
    assert limit.filter(told)
    assert told.msg == {"event": "request failed", "suppressed": 5}


def test_rate_limit_leaves_lines_of_workers_to_their_own_limit() -> None:
    limit = RepeatLimit(Clock())
    assert all(limit.filter(record("%s: %s", "workers.pool")) for _ in range(100))


def test_rate_limit_forgets_messages_when_there_are_too_many() -> None:
    limit = RepeatLimit(Clock())
    for number in range(5000):
        assert limit.filter(record(f"message {number}"))


def test_rate_limit_holds_for_the_server_s_log() -> None:
    root, stream = logging.getLogger(), io.StringIO()
    others, root.handlers = root.handlers, []
    stop = logs.configure(Logging(format="json"), stream)
    try:
        for _ in range(200):
            structlog.get_logger("ours").error("request failed", method="GET")
    finally:
        stop()
        root.handlers = others
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert LINES_PER_SECOND <= len(lines) <= 5 * LINES_PER_SECOND
