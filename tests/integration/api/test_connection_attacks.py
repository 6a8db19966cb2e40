"""Connections under attack, over real sockets: slow readers, and bodies that cost much."""

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from bitinglip.http import turns
from bitinglip.http.connections import Times
from bitinglip.http.protocol import PIECE_BYTES
from tests.integration.api.test_connections import (
    CAP,
    LIVEZ,
    TIMES,
    connected,
    everything,
    send_all_that_is_taken,
)
from tests.support.api_server import Served, serve
from tests.support.http_client import NATIVE, PROMPT
from tests.support.wait import eventually

#: for a public page of 1.5 MB, more often than the buffers of a connection hold
PAGES = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 12


@pytest.fixture(scope="module")
def hurried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Provide a server that gives its clients little time."""
    with serve(tmp_path_factory.mktemp("hurried"), times=TIMES) as served:
        yield served


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Provide a server that takes few connections."""
    with serve(tmp_path_factory.mktemp("small"), server={"max_connections": CAP}) as served:
        yield served


TINY = b"1\r\n \r\n"  #: a chunk


def unwanted(framing: str, size: int) -> bytes:
    """Return a request without a key, its body, and another request after it."""
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\n" % NATIVE.encode()
    if framing == "length":
        return head + b"Content-Length: %d\r\n\r\n%b" % (size, b" " * size) + LIVEZ
    chunk = TINY if framing == "tiny chunks" else b"1;a=%b\r\n \r\n" % (b"a" * 1000)
    body = chunk * (size // len(chunk))
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n" + LIVEZ


FRAMINGS = ("length", "tiny chunks", "chunks with extensions")


@pytest.mark.parametrize("framing", FRAMINGS)
def test_body_of_a_refused_request_is_read_up_to_a_bound(hurried: Served, framing: str) -> None:
    # What has arrived when the response begins is read; the rest of more chunks than one turn of
    # the loop takes counts as not arrived (see ``test_early_responses``).
    few = len(TINY) * (turns.CHUNKS // 2) if framing == "tiny chunks" else 9000
    with connected(hurried) as sock:
        sock.sendall(unwanted(framing, few))
        answer = b""
        while b"HTTP/1.1 200" not in answer:
            piece = sock.recv(65536)
            assert piece, answer
            answer += piece
        assert answer.startswith(b"HTTP/1.1 401")
    before = hurried.connections.refused["unwanted"]
    with connected(hurried) as sock:
        head, _, body = unwanted(framing, 1_000_000).partition(b"\r\n\r\n")
        sock.sendall(head + b"\r\n\r\n")
        answer = sock.recv(65536)
        send_all_that_is_taken(sock, body)
        answer += everything(sock)
    assert answer.count(b"HTTP/1.1") == answer.count(b"HTTP/1.1 401") == 1
    assert hurried.connections.refused["unwanted"] == before + 1


def test_chunks_of_a_body_leave_the_loop_to_others(served: Served) -> None:
    """Check that one turn of the loop takes about its share of chunks, however many arrive at
    once."""
    count = 95_000
    body = json.dumps(PROMPT).encode()
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: %b\r\n" % (
        NATIVE.encode(),
        served.keys["inference:text"].encode(),
    )
    head += b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    most = 0
    done = False

    async def watch() -> None:
        nonlocal most
        before = 0
        while not done:
            received = max((each.received for each in served.connections.all()), default=0)
            most, before = max(most, received - before), received
            await asyncio.sleep(0)

    watching = asyncio.run_coroutine_threadsafe(watch(), served.loop)
    try:
        with connected(served) as sock:
            last = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            sock.sendall(head + TINY * count + last + LIVEZ)
            answer = b""
            while answer.count(b"HTTP/1.1 200") < 2:
                piece = sock.recv(65536)
                assert piece, answer
                answer += piece
        assert b"one two" in answer
    finally:
        done = True
        watching.result(60)
    # Two turns may lie between two looks. A turn ends with a whole piece, and the bytes that are
    # counted stand for chunks of one byte, but for the last.
    of_turn = turns.CHUNKS + PIECE_BYTES // len(TINY)
    assert 0 < most <= 2 * of_turn + len(body)


def test_connections_without_a_key_that_read_slowly_are_closed_first(small: Served) -> None:
    keyed = {**PROMPT, "prompt": "!stall", "stream": True}
    before = small.connections.refused["no_caller"]
    with ExitStack() as stack:
        headers = small.headers("inference:text")
        client = stack.enter_context(httpx.Client(base_url=small.url, headers=headers, timeout=60))
        stream = stack.enter_context(client.stream("POST", NATIVE, json=keyed))
        lines = stream.iter_lines()
        assert next(lines)
        slow = [stack.enter_context(slow_reader(small, PAGES)) for _ in range(CAP - 1)]
        eventually(lambda: small.connections.states() == {"busy": CAP, "idle": 0})
        answer = httpx.get(small.url + "/api/v1/tasks", headers=headers)
        assert answer.status_code == 200, answer.text
        # Only one made room, the first; what has a key is left alone however old it is.
        assert small.connections.refused["no_caller"] == before + 1
        assert len(everything(slow[0])) < 10_000_000
        for _ in range(2 * CAP):
            another = stack.enter_context(slow_reader(small, PAGES))
            assert another.recv(12) == b"HTTP/1.1 200"
        assert small.connections.refused["no_caller"] > before + CAP
        assert any("token" in line for line in lines)  # the stream has not been cut
    eventually(lambda: small.connections.open == 0)


@contextmanager
def slow_reader(served: Served, requests: bytes) -> Iterator[socket.socket]:
    """Send requests and read nothing of the answers; the kernel takes little of them."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(60)
        sock.connect(("127.0.0.1", served.port))
        sock.sendall(requests)
        yield sock


def test_send_timeout_without_a_key_is_shorter(tmp_path: Path) -> None:
    """One with a key is not: it has 8 seconds."""
    with serve(tmp_path, times=Times(send=8, tick=0.05)) as served:
        headers = served.headers("inference:text")
        key = b"X-Api-Key: %b\r\n\r\n" % served.keys["inference:text"].encode()
        flood = json.dumps({**PROMPT, "prompt": "!flood", "stream": True}).encode()
        keyed = (
            b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n%b%b" % (NATIVE.encode(), len(flood), key, flood)
        )
        assert httpx.post(served.url + NATIVE, json=PROMPT, headers=headers).status_code == 200
        with slow_reader(served, keyed) as known, slow_reader(served, PAGES):
            assert known.recv(12) == b"HTTP/1.1 200"
            eventually(lambda: served.connections.refused["unread"] == 1)
            eventually(lambda: served.connections.open == 1)
            assert [each.has_caller() for each in served.connections.all()] == [True]
