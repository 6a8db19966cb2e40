"""Writing a response: what is joined, what is refused."""

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import httptools
import pytest
from uvicorn.protocols.http.flow_control import FlowControl

from bitinglip.api.request_context import WHOLE_BODY
from bitinglip.http.exchange import Exchange, split_target
from tests.support.logs import CaughtLogs


class _Transport(asyncio.Transport):
    """Keeps what is written, by call."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def close(self) -> None:
        self.closed = True


def _exchange(method: str = "GET", *, keep_alive: bool = True) -> tuple[_Transport, Exchange]:
    transport = _Transport()
    protocol: Any = SimpleNamespace(
        transport=transport,
        flow=FlowControl(transport),
        logger=logging.getLogger("test"),
        server_state=SimpleNamespace(default_headers=[(b"date", b"today")]),
        expect_100_continue=False,
        on_response_complete=lambda: None,
    )
    scope = {"type": "http", "method": method, "http_version": "1.1"}
    return transport, Exchange(scope, protocol, keep_alive=keep_alive)


def _send(
    *messages: dict[str, Any], method: str = "GET", keep_alive: bool = True
) -> tuple[_Transport, Exchange]:
    """Send these messages of an application, and return what became of them."""

    async def run() -> tuple[_Transport, Exchange]:
        transport, exchange = _exchange(method, keep_alive=keep_alive)
        for message in messages:
            await exchange.send(message)
        return transport, exchange

    return asyncio.run(run())


def _run(app: Any) -> tuple[_Transport, bool]:
    """Run an application; return what it wrote, and whether its task was among the server's."""

    async def run() -> tuple[_Transport, bool]:
        transport, exchange = _exchange()
        tasks: set[asyncio.Task[None]] = set()
        exchange.start(app, asyncio.get_running_loop(), tasks)
        (task,) = tasks
        await asyncio.wait([task])
        assert not tasks
        return transport, task.exception() is None

    return asyncio.run(run())


def _start(*headers: tuple[bytes, bytes], status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def _body(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def test_exchange_writes_head_and_body_of_known_length_at_once() -> None:
    transport, exchange = _send(_start((b"content-length", b"2")), _body(b"ok"))
    assert transport.written == [b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-length: 2\r\n\r\nok"]
    assert exchange.response_complete
    assert not transport.closed


def test_exchange_writes_a_whole_body_that_comes_with_the_head() -> None:
    transport, exchange = _send({**_start((b"x", b"y")), WHOLE_BODY: b"ok"})
    (written,) = transport.written
    assert written == b"HTTP/1.1 200 OK\r\ndate: today\r\nx: y\r\ncontent-length: 2\r\n\r\nok"
    assert exchange.response_complete
    with pytest.raises(RuntimeError, match="in place of"):
        _send({**_start(), WHOLE_BODY: b""}, _body(b""))
    transport, exchange = _send({**_start(), WHOLE_BODY: b"ok"}, method="HEAD", keep_alive=False)
    assert b"".join(transport.written).endswith(b"content-length: 2\r\nconnection: close\r\n\r\n")
    assert transport.closed


def test_exchange_answers_for_an_application_that_does_not(
    caplog: CaughtLogs,
) -> None:
    async def raises(*_: Any) -> None:
        raise LookupError("no such thing")

    async def returns(*_: Any) -> None:
        pass

    async def breaks_off(_scope: Any, _receive: Any, send: Any) -> None:
        await send(_start())

    for app, log in ((raises, "no such thing"), (returns, "without starting")):
        transport, ended = _run(app)
        assert b"".join(transport.written).startswith(b"HTTP/1.1 500 ")
        assert ended
        assert log in caplog.text
    transport, _ = _run(breaks_off)
    assert transport.closed
    assert "without completing" in caplog.text


def test_exchange_writes_chunks_as_they_come() -> None:
    transport, _ = _send(_start())
    assert transport.written == [
        b"HTTP/1.1 200 OK\r\ndate: today\r\ntransfer-encoding: chunked\r\n\r\n"
    ]
    transport, _ = _send(_start(), _body(b"abc", more=True), _body(b"", more=True), _body(b"d"))
    assert transport.written[1:] == [b"3\r\nabc\r\n", b"1\r\nd\r\n0\r\n\r\n"]


@pytest.mark.parametrize("status", [200, 204, 304])
def test_exchange_without_body_ends_with_its_head(status: int) -> None:
    method = "HEAD" if status == 200 else "GET"
    transport, exchange = _send(_start(status=status), _body(b""), method=method)
    assert b"".join(transport.written).endswith(b"date: today\r\n\r\n")
    assert exchange.response_complete


def test_exchange_that_closes_says_so_once() -> None:
    empty = (b"content-length", b"0")
    for keep_alive, headers in ((False, [empty]), (True, [empty, (b"connection", b"close")])):
        transport, _ = _send(_start(*headers), _body(b""), keep_alive=keep_alive)
        assert transport.written[0].count(b"connection: close\r\n") == 1
        assert transport.closed


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: x", b"a\n", b"a\r", b"\0", b"\x7f"])
def test_exchange_refuses_control_characters_in_headers(value: bytes) -> None:
    for header in ((b"x-name", value), (value, b"x")):
        with pytest.raises(RuntimeError, match="control character"):
            _send(_start(header))


def test_exchange_refuses_bodies_of_another_length_than_declared() -> None:
    for body in (b"", b"three"):
        with pytest.raises(RuntimeError, match="Content-Length"):
            _send(_start((b"content-length", b"2")), _body(body))


def test_exchange_refuses_messages_out_of_order() -> None:
    for messages in ((_body(b""),), (_start(), _start()), (_start(), _body(b""), _body(b""))):
        with pytest.raises(RuntimeError, match="in place of"):
            _send(*messages)


def test_target_is_split_like_any_url() -> None:
    assert split_target(b"/a%20b") == ("/a b", b"/a%20b", b"")
    assert split_target(b"/a?x=1&y=%20") == ("/a", b"/a", b"x=1&y=%20")
    assert split_target(b"http://host/a?") == ("/a", b"/a", b"")
    assert split_target(b"/" + b"a" * 500) == ("/" + "a" * 500, b"/" + b"a" * 500, b"")
    with pytest.raises(httptools.HttpParserInvalidURLError):
        split_target(b"a b")
