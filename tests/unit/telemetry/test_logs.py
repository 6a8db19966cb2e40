"""The logs: a key never appears in them, and no text can forge a line."""

import io
import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest
import structlog

from bitinglip.access import credentials
from bitinglip.settings import Logging
from bitinglip.telemetry import logs
from bitinglip.telemetry.redaction import mask

CANARY = credentials.make()
SECRET = CANARY.text[22:]


@contextmanager
def logged(
    style: Literal["auto", "console", "json"] = "json", level: Literal["debug", "info"] = "info"
) -> Iterator[Callable[[], str]]:
    """Yield the log lines; reading them ends the logging."""
    root, stream = logging.getLogger(), io.StringIO()
    others, root.handlers = root.handlers, []  # pytest's own fail on a broken log call
    stop = logs.configure(Logging(level=level, format=style), stream)
    stopped = False

    def text() -> str:
        nonlocal stopped
        if not stopped:
            stop()
            stopped = True
        return stream.getvalue()

    try:
        yield text
    finally:
        text()
        root.handlers = others
        structlog.contextvars.clear_contextvars()


def say_it_everywhere() -> None:
    key = CANARY.text
    log = structlog.get_logger("ours")
    log.info(" ".join(["new key", key]), key=key, nested={"a": [key]}, raw=key.encode())
    structlog.contextvars.bind_contextvars(credential=key)
    std = logging.getLogger("uvicorn.access")
    std.info('%s - "%s %s HTTP/1.1" %d', "1.2.3.4:5", "GET", f"/?api_key={key}", 401)
    std.info("a broken call %d", key)
    std.warning({"key": key})
    try:
        raise ValueError(f"cannot use {key}") from KeyError(key)
    except ValueError:
        log.exception("failed")
        logging.getLogger("third.party").exception("failed with %s", key)
    log.info("cut short and longer", words=[key[:50], f"{key}xyz"])


@pytest.mark.parametrize("style", ["json", "console"])
def test_redaction_hides_secrets_everywhere(style: Literal["json", "console"]) -> None:
    with logged(style, "debug") as text:
        say_it_everywhere()
    said = text()
    for length in (8, 27):
        assert SECRET[:length] not in said
    assert SECRET[-8:] not in said
    assert f"blk_live_{CANARY.id}_***" in said
    assert "a log call is broken" in said
    assert said.count("Traceback") == 2
    if style == "json":
        assert all(isinstance(json.loads(line), dict) for line in said.splitlines())


def test_redaction_leaves_other_text() -> None:
    for text in ("", "blk_live_ is the prefix", "nothing", "blk_live_abc"):
        assert mask(text) == text
    assert mask("a eyJhbGciOiJIUzI1.eyJpc3Mi.c2VjcmV0 b") == "a eyJhbGciOiJIUzI1.eyJpc3Mi.*** b"
    assert mask("eyJ" * 100_000) == "eyJ" * 100_000  # in linear time
    assert mask(f"a {CANARY.text} b") == f"a blk_live_{CANARY.id}_*** b"


@pytest.mark.parametrize("style", ["json", "console"])
def test_log_text_cannot_forge_a_line_or_move_the_cursor(style: Literal["json", "console"]) -> None:
    evil = 'x\n{"event": "forged"}\r\x1b[2J\x00\x7f\x9b\u2028\u202e\ud800'
    with logged(style) as text:
        structlog.get_logger("ours").info(evil, **{"k\n": evil})
        logging.getLogger("other").error("%s", evil)
    said = text()
    assert len(said.splitlines()) == 2
    assert not [c for c in said if c != "\n" and (ord(c) < 32 or 126 < ord(c) < 160)]
    assert said.encode("utf-8")


def test_log_lines_in_json_carry_the_request_id_and_what_was_bound() -> None:
    with logged() as text:
        structlog.contextvars.bind_contextvars(request_id="r1")
        structlog.get_logger("ours").warning("it happened", count=3, what=object)
        logging.getLogger("other").info("it too %s", "x")
        logging.getLogger("other").debug("too low")
        structlog.get_logger("ours").debug("too low")
    first, second = (json.loads(line) for line in text().splitlines())
    assert first.pop("timestamp").endswith("Z")
    expected: dict[str, Any] = {
        "event": "it happened",
        "request_id": "r1",
        "level": "warning",
        "logger": "ours",
        "count": 3,
        "what": "<class 'object'>",
    }
    assert first == expected
    assert (second["event"], second["request_id"], second["level"]) == ("it too x", "r1", "info")


def test_log_traceback_in_the_console_is_indented() -> None:
    with logged("console") as text:
        try:
            raise ValueError("first\n12:00:00 info    forged")
        except ValueError:
            structlog.get_logger("ours").exception("failed", a=1)
    head, *trace = text().splitlines()
    assert "error   failed  a=1" in head
    assert trace
    assert all(line.startswith("    ") for line in trace)


class Stuck(io.StringIO):
    """Stands for a stderr without a reader."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()

    def write(self, text: str) -> int:
        self.free.wait(60)
        return super().write(text)


def test_log_to_a_stuck_stderr_blocks_nothing_and_fills_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "_MAX_WAITING", 10)
    stream = Stuck()
    stop = logs.configure(Logging(format="json"), stream)
    log = logging.getLogger("ours")
    for number in range(100):
        log.info("line %d", number)
    stream.free.set()
    while len(stream.getvalue().splitlines()) < 10:
        pass
    log.info("after")
    stop()
    lines = stream.getvalue().splitlines()
    assert len(lines) < 15
    assert any("log lines were dropped" in line for line in lines)
    assert "after" in lines[-1]


def test_log_stop_leaves_the_root_logger_as_it_was() -> None:
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    with logged("auto", "debug"):
        assert root.level == logging.DEBUG
    assert (root.handlers, root.level) == before


def test_log_leaves_out_what_libraries_say_of_their_own_start() -> None:
    with logged("json", "info") as text:
        for name in ("alembic.runtime.plugins", "alembic.runtime.migration"):
            logging.getLogger(name).info("from %s", name)
        told = text()
    assert "runtime.migration" in told
    assert "runtime.plugins" not in told
