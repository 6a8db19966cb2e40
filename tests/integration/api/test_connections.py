"""Connections: caps, times and bounds of the HTTP protocol itself, over real sockets."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx
import pytest

from bitinglip.http.connections import Times
from tests.support.api_server import Served, serve
from tests.support.http_client import NATIVE, PROMPT, error_of
from tests.support.raw_http import read_response
from tests.support.wait import eventually
from tests.support.websocket_client import open_watch, refusal
from workers import protocol

LIVEZ = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
START = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
#: as short as a busy machine allows to those who are in time
TIMES = Times(header=1.0, guest=1.0, body=1.0, send=1.5, linger=1.0, tick=0.05)
CAP = 6
LARGE = 14_000_000


async def large(job: protocol.Job) -> AsyncIterator[protocol.JobEvent]:
    """Answer with more than the buffers of any connection hold."""
    yield protocol.Started(id=job.id, prompt_tokens=1)
    yield protocol.TextDone(
        id=job.id,
        choices=(protocol.TextChoice(text="x" * LARGE, finish_reason="length"),),
        prompt_tokens=1,
        completion_tokens=2,
    )


@pytest.fixture(scope="module")
def hurried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Provide a server that gives its clients little time."""
    with serve(tmp_path_factory.mktemp("hurried"), times=TIMES) as served:
        yield served


@pytest.fixture(scope="module")
def wordy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Provide a server that gives its clients little time, with large answers."""
    with serve(tmp_path_factory.mktemp("wordy"), large, times=TIMES) as served:
        yield served


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Provide a server that takes few connections, and two requests of a key."""
    limits = {"max_connections": CAP, "max_requests_per_key": 2}
    with serve(tmp_path_factory.mktemp("small"), server=limits) as served:
        yield served


@contextmanager
def connected(served: Served) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as sock:
        yield sock


def post(served: Served, length: int, scope: str = "inference:text") -> bytes:
    """Return the request line and headers of a request for text."""
    return (
        b"POST %b HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: %b\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        % (NATIVE.encode(), served.keys[scope].encode(), length)
    )


def everything(sock: socket.socket) -> bytes:
    """Read until the server closes."""
    read = b""
    while True:
        try:
            piece = sock.recv(65536)
        except ConnectionResetError:
            return read
        if not piece:
            return read
        read += piece


def refused(answer: bytes, status: int, code: str = "INVALID_REQUEST") -> dict[str, Any]:
    """Check a refusal of the protocol: the contract's error object, and a closed connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    response = httpx.Response(
        int(head.split()[1]),
        headers=dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:]),
        content=body,
    )
    assert response.headers["connection"] == "close"
    assert int(response.headers["content-length"]) == len(body)
    return error_of(response, status, code)


def answers(sock: socket.socket) -> bool:
    sock.sendall(LIVEZ)
    return read_response(sock).startswith(b"HTTP/1.1 200")


# ---- what is too large -------------------------------------------------------------------------

TOO_LARGE = {
    "one header": START + b"X: " + b"a" * 33_000 + b"\r\n\r\n",
    "one that does not end": START + b"X: " + b"a" * 3_000_000,
    "many headers": START + b"".join(b"X-%d: 1\r\n" % n for n in range(100)) + b"\r\n",
    "many bytes of headers": START + b"X-Long: %b\r\n" % (b"a" * 900) * 40 + b"\r\n",
    "an address": b"GET /livez?" + b"a" * 33_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a method": b"G" * 40_000,
    "trailers": (
        b"POST /livez HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
        b"X: " + b"a" * 1_000_000
    ),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_headers_that_are_too_large_are_refused(served: Served, name: str) -> None:
    with connected(served) as sock:
        send_all_that_is_taken(sock, TOO_LARGE[name])
        answer = everything(sock)
    if name == "a method":
        refused(answer, 400)
    elif name == "trailers":  # the answer to the request may have begun
        assert b" 431 " in answer or b" 405 " in answer
    else:
        refused(answer, 431)
    eventually(lambda: served.connections.open == 0)


def send_all_that_is_taken(sock: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        sock.sendall(data)


@pytest.mark.parametrize("before", [1, 3])
def test_headers_that_are_too_large_are_found_behind_other_requests(
    served: Served, before: int
) -> None:
    with connected(served) as sock:
        assert answers(sock)
        send_all_that_is_taken(sock, LIVEZ * before + TOO_LARGE["one header"])
        answer = everything(sock)
        assert b"HTTP/1.1 431" in answer or answer.count(b"HTTP/1.1 200") <= before


def test_headers_up_to_the_limit_are_taken(served: Served) -> None:
    with connected(served) as sock:
        for _ in range(3):
            filler = b"".join(b"X-%d: %b\r\n" % (n, b"a" * 300) for n in range(98))
            sock.sendall(START + filler + b"\r\n")
            assert read_response(sock).startswith(b"HTTP/1.1 200")


def test_trailers_are_no_headers(served: Served) -> None:
    """Otherwise a client could add what an inspecting proxy has not seen."""
    body = json.dumps(PROMPT).encode()
    with connected(served) as sock:
        sock.sendall(
            b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n"
            b"X-Api-Key: %b\r\n\r\n"
            % (NATIVE.encode(), len(body), body, served.keys["inference:text"].encode())
        )
        assert sock.recv(65536).startswith(b"HTTP/1.1 401")


def test_pipelined_requests_are_answered_in_order_and_bounded(served: Served) -> None:
    with connected(served) as sock:
        sock.sendall(LIVEZ * 19 + START + b"Connection: close\r\n\r\n")
        assert everything(sock).count(b"HTTP/1.1 200") == 20
    before = served.connections.refused["pipelined"]
    with connected(served) as sock:
        send_all_that_is_taken(sock, LIVEZ * 1000)
        assert everything(sock).count(b"HTTP/1.1 200") < 100
    assert served.connections.refused["pipelined"] == before + 1


def test_invalid_http_is_refused_in_the_contracts_words(served: Served) -> None:
    with connected(served) as sock:
        sock.sendall(b"nonsense\r\n\r\n")
        refused(everything(sock), 400)


# ---- what takes too long -----------------------------------------------------------------------


def test_idle_connection_is_closed_without_a_response(hurried: Served) -> None:
    with connected(hurried) as sock:
        assert everything(sock) == b""


def test_slow_headers_are_refused(hurried: Served) -> None:
    with connected(hurried) as sock:
        sock.sendall(START)
        refused(everything(sock), 408)
    with connected(hurried) as sock:  # the second request of a connection
        assert answers(sock)
        sock.sendall(START)
        refused(everything(sock), 408)


def test_slow_body_is_refused(hurried: Served) -> None:
    with connected(hurried) as sock:
        sock.sendall(post(hurried, 100) + b"{")
        refused(everything(sock), 408)
    hurried.wait_idle()


def test_body_that_comes_in_keeps_its_connection(hurried: Served) -> None:
    """Send for more than twice as long as a body may stall, at more than the least rate."""
    size, piece = 900_000, 75_000

    async def send() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", hurried.port)
        writer.write(post(hurried, size) + json.dumps(PROMPT).encode().ljust(piece))
        for _ in range(size // piece - 1):
            await asyncio.sleep(0.2)
            writer.write(b" " * piece)
            await writer.drain()
        first = await reader.read(65536)
        writer.close()
        return first

    assert asyncio.run(send()).startswith(b"HTTP/1.1 200")


def test_body_of_a_refused_request_is_not_read_without_end(served: Served) -> None:
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000\r\n\r\n"
    with connected(served) as sock:
        sock.sendall(head % NATIVE.encode())
        answer = everything(sock)
        assert answer.count(b"HTTP/1.1") == answer.count(b"HTTP/1.1 401") == 1


def test_send_timeout_ends_a_response_that_is_not_read(wordy: Served) -> None:
    body = json.dumps(PROMPT).encode()
    with connected(wordy) as sock:
        sock.sendall(post(wordy, len(body)) + body)
        eventually(lambda: wordy.connections.refused["unread"])
        eventually(lambda: wordy.connections.open == 0)


def test_send_timeout_spares_a_response_that_is_read_slowly(wordy: Served) -> None:
    before = dict(wordy.connections.refused)
    headers = wordy.headers("inference:text")
    with (
        httpx.Client(base_url=wordy.url, headers=headers, timeout=60) as client,
        client.stream("POST", NATIVE, json=PROMPT) as response,
    ):
        count = 0
        for piece in response.iter_bytes(400_000):
            count += len(piece)
            if count < 6_000_000:
                time.sleep(0.1)
        assert count > LARGE
    assert wordy.connections.refused == before


# ---- too many ----------------------------------------------------------------------------------


def test_idle_connections_are_closed_for_new_ones(small: Served) -> None:
    with ExitStack() as stack:
        silent = [stack.enter_context(connected(small)) for _ in range(5 * CAP)]
        new = stack.enter_context(connected(small))
        assert answers(new)
        assert everything(silent[0]) == b""
        assert small.connections.open <= CAP
        # One that was served goes after those that never asked for anything.
        for _ in range(2 * CAP):
            stack.enter_context(connected(small))
        assert answers(new)
    eventually(lambda: small.connections.open == 0)


def test_liveness_is_answered_when_all_connections_are_busy(small: Served) -> None:
    with ExitStack() as stack:
        for _ in range(CAP):
            busy = stack.enter_context(connected(small))
            busy.sendall(post(small, 10, "admin") + b"{")  # the operator has no cap
        eventually(lambda: small.connections.states() == {"busy": CAP, "idle": 0})
        guest = stack.enter_context(connected(small))
        assert answers(guest)
        other = stack.enter_context(connected(small))
        other.sendall(LIVEZ.replace(b"livez", b"readyz"))
        refused(everything(other), 503, "OVERLOADED")
        # Guests come and go; there is always room for one more that asks the same.
        for _ in range(50):
            assert answers(stack.enter_context(connected(small)))
    eventually(lambda: small.connections.open == 0)


def test_concurrency_of_one_key_is_bounded(small: Served) -> None:
    waiting = {**PROMPT, "prompt": "!stall", "stream": True}
    with ExitStack() as stack:
        headers = small.headers("inference:text")
        client = stack.enter_context(httpx.Client(base_url=small.url, headers=headers, timeout=60))
        for _ in range(2):
            stack.enter_context(client.stream("POST", NATIVE, json=waiting))
        over = client.post(NATIVE, json=PROMPT)
        error_of(over, 429, "CONCURRENCY_LIMIT_EXCEEDED")
        assert over.headers["retry-after"] == "1"
        other = client.get("/livez")
        assert other.status_code == 200
    with httpx.Client(base_url=small.url, headers=headers, timeout=60) as client:
        eventually(lambda: client.post(NATIVE, json=PROMPT).status_code == 200)


def test_concurrency_of_one_key_counts_watchers_with_tickets(small: Served) -> None:
    with (
        ExitStack() as stack,
        httpx.Client(
            base_url=small.url, headers=small.headers("inference:text"), timeout=60
        ) as client,
    ):
        accepted = client.post(NATIVE, json={**PROMPT, "prompt": "!stall", "async": True})
        task_id = accepted.json()["task_id"]
        issued = [
            client.post("/api/v1/auth/ws-ticket", json={"task_id": task_id}) for _ in range(4)
        ]
        queries = [f"?ticket={each.json()['ticket']}" for each in issued]
        first, _ = [
            stack.enter_context(open_watch(small.url, task_id, query=query))
            for query in queries[:2]
        ]
        status, error = refusal(small.url, task_id, query=queries[2])
        assert (status, error["code"]) == (429, "CONCURRENCY_LIMIT_EXCEEDED")
        error_of(client.post(NATIVE, json=PROMPT), 429, "CONCURRENCY_LIMIT_EXCEEDED")
        first.close()
        eventually(lambda: client.get("/api/v1/tasks").status_code == 200)
        with open_watch(small.url, task_id, query=queries[3]):
            pass
