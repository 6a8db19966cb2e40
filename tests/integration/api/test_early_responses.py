"""Responses that begin before the request's body has arrived, over real sockets.

The client must be able to tell whether it may use its connection again (RFC 9112, 9.3 and 9.6).
"""

import json
import socket
from collections.abc import Iterator

import httpx
import pytest

from bitinglip.http import turns
from tests.integration.api.test_connections import (
    LIVEZ,
    TIMES,
    answers,
    connected,
    everything,
)
from tests.support.api_server import Served, serve
from tests.support.http_client import NATIVE, PROMPT
from tests.support.raw_http import read_response
from tests.support.wait import eventually

CHUNK = b"1f4\r\n" + b"x" * 500 + b"\r\n"
END = b"0\r\n\r\n"


@pytest.fixture(scope="module")
def hurried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Provide a server that gives its clients little time."""
    with serve(tmp_path_factory.mktemp("hurried"), times=TIMES) as served:
        yield served


def head(*headers: bytes, version: bytes = b"1.1") -> bytes:
    """Return the request line and headers of a request without a key."""
    lines = [b"POST %b HTTP/%b" % (NATIVE.encode(), version), b"Host: localhost", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


CHUNKED = b"Transfer-Encoding: chunked"
EXPECT = b"Expect: 100-continue"

#: what a client has sent when it is refused, and what it still sends
ENDING = {
    "large": (head(b"Content-Length: 60000") + b"x" * 1000, b"x" * 59_000),
    "chunked, nothing of it": (head(CHUNKED), CHUNK + END),
    "chunked, some of it": (head(CHUNKED) + CHUNK, CHUNK + END),
    "chunked, all but its end": (head(CHUNKED) + CHUNK + b"0\r\n", b"\r\n"),
    "chunked, more than a turn takes": (
        head(CHUNKED) + b"1\r\n \r\n" * (3 * turns.CHUNKS) + END,
        b"",
    ),
    "a client that waits, then sends": (head(b"Content-Length: 100", EXPECT), b"x" * 100),
    "a client that waits, and sends nothing": (head(b"Content-Length: 100", EXPECT), b""),
    "a client that waits with chunks": (head(CHUNKED, EXPECT), END),
    "a client that closes": (head(b"Content-Length: 1000", b"Connection: close"), b"x" * 1000),
    "chunked, a client that closes": (head(CHUNKED, b"Connection: close"), CHUNK + END),
    "an old client": (head(b"Content-Length: 1000", version=b"1.0"), b"x" * 1000),
    "an old client that waits": (
        head(b"Content-Length: 1000", EXPECT, version=b"1.0"),
        b"x" * 1000,
    ),
    "an old client that keeps its connection": (
        head(b"Content-Length: 1000", b"Connection: keep-alive", version=b"1.0"),
        b"x" * 1000,
    ),
}


@pytest.mark.parametrize("name", ENDING)
def test_early_response_says_that_the_connection_ends_and_lingers(
    served: Served, name: str
) -> None:
    """A client that believed it to be kept alive would send its next request into nothing."""
    sent, rest = ENDING[name]
    with connected(served) as sock:
        sock.sendall(sent)
        first = sock.recv(65536)
        # The client goes on as if it had seen nothing yet. A socket that were closed with this
        # unread would be reset, and the reset may overtake the response.
        sock.sendall(rest + LIVEZ)
        answer = first + everything(sock)
        sock.sendall(LIVEZ)
    said = answer.lower().partition(b"\r\n\r\n")[0]
    assert said.startswith(b"http/1.1 401")
    assert b"\r\nconnection: close" in said
    assert answer.count(b"HTTP/1.1") == 1, "a request after the announced end was answered"
    assert answer.endswith(b"}")
    eventually(lambda: served.connections.open == 0)


KEPT = {
    "small": (head(b"Content-Length: 1000") + b"x" * 500, b"x" * 500),
    "chunked, all of it": (head(CHUNKED) + CHUNK * 40 + END, b""),
    "chunked, with trailers": (head(CHUNKED) + CHUNK + b"0\r\nX-A: b\r\n\r\n", b""),
    "empty chunked": (head(CHUNKED) + END, b""),
    "a client that did not wait": (head(b"Content-Length: 100", EXPECT) + b"x" * 100, b""),
}


@pytest.mark.parametrize("name", KEPT)
def test_early_response_keeps_the_connection_of_a_body_that_is_read(
    served: Served, name: str
) -> None:
    sent, rest = KEPT[name]
    with connected(served) as sock:
        for _ in range(2):
            sock.sendall(sent)
            answer = read_response(sock)
            assert answer.startswith(b"HTTP/1.1 401")
            assert b"connection: close" not in answer.lower()
            sock.sendall(rest)
        assert answers(sock)


def test_early_response_is_followed_by_none_of_what_the_client_sent_ahead(served: Served) -> None:
    """Send the end of the body, and the next request, in the same bytes as well."""
    with connected(served) as sock:
        sock.sendall(head(CHUNKED) + b"1\r\n \r\n" * (2 * turns.CHUNKS) + END + LIVEZ * 3)
        answer = everything(sock)
    assert answer.count(b"HTTP/1.1") == answer.count(b"HTTP/1.1 401") == 1


def test_early_response_behind_another_request_ends_the_connection(served: Served) -> None:
    with connected(served) as sock:
        sock.sendall(LIVEZ + head(CHUNKED) + CHUNK)
        answer = everything(sock)
    first, _, second = answer.partition(b"HTTP/1.1 401")
    assert first.startswith(b"HTTP/1.1 200")
    assert b"connection: close" not in first.lower()
    assert b"connection: close" in second.lower()


def send_for_ever(sock: socket.socket) -> None:
    while True:
        sock.sendall(CHUNK * 100)


def test_early_response_lingers_no_longer_than_its_time(hurried: Served) -> None:
    """Send all the time: the deadline holds however much arrives."""
    before = hurried.connections.refused["unwanted"]
    with connected(hurried) as sock:
        sock.sendall(head(CHUNKED))
        assert read_response(sock).startswith(b"HTTP/1.1 401")
        with pytest.raises(ConnectionError):
            send_for_ever(sock)
    assert hurried.connections.refused["unwanted"] == before + 1
    eventually(lambda: hurried.connections.open == 0)


def test_early_response_that_lingers_is_closed_for_new_connections(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Connections that are refused already take no other client's place."""
    root = tmp_path_factory.mktemp("few")
    with serve(root, server={"max_connections": 4}) as served:
        refused: list[socket.socket] = []
        try:
            for _ in range(12):
                sock = socket.create_connection(("127.0.0.1", served.port), timeout=60)
                refused.append(sock)
                sock.sendall(head(CHUNKED))
                assert read_response(sock).startswith(b"HTTP/1.1 401")
            with connected(served) as sock:
                assert answers(sock)
        finally:
            for sock in refused:
                sock.close()


def test_early_response_is_not_needed_for_a_large_body_that_is_taken(served: Served) -> None:
    with httpx.Client(base_url=served.url, headers=served.headers("inference:text")) as client:
        for _ in range(2):
            response = client.post(NATIVE, json={"model": "nobody", "prompt": "x" * 60_000})
            assert response.status_code == 404
            assert "connection" not in response.headers


def test_early_response_is_not_needed_for_chunks_that_are_taken(served: Served) -> None:
    body = b'{"model": "nobody", "prompt": "hello"}'
    key = b"X-Api-Key: %b" % served.keys["inference:text"].encode()
    with connected(served) as sock:
        sock.sendall(head(CHUNKED, key, b"Content-Type: application/json") + CHUNK[:2])
        eventually(lambda: served.connections.states()["busy"] == 1)
        sock.sendall(CHUNK[2:5] + b" " * 500 + b"\r\n%x\r\n%b\r\n" % (len(body), body) + END)
        answer = read_response(sock)
        assert answer.startswith(b"HTTP/1.1 404")
        assert b"connection: close" not in answer.lower()
        assert answers(sock)


@pytest.mark.parametrize(("version", "told"), [(b"1.1", True), (b"1.0", False)])
def test_expect_continue_is_answered(served: Served, version: bytes, told: bool) -> None:
    """A client of HTTP/1.0 would take that for the response."""
    body = json.dumps({**PROMPT, "model": "nobody"}).encode()
    key = b"X-Api-Key: %b" % served.keys["inference:text"].encode()
    length = b"Content-Length: %d" % len(body)
    with connected(served) as sock:
        sock.sendall(head(key, b"Content-Type: application/json", length, EXPECT, version=version))
        if told:
            assert read_response(sock) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        answer = read_response(sock)
        assert answer.startswith(b"HTTP/1.1 404")
        assert (b"connection: close" in answer.lower()) is not told


@pytest.mark.parametrize(("count", "size"), [(1, 10), (50, 500), (400, 4000)])
def test_early_response_is_read_by_a_client_that_still_sends_chunks(
    served: Served, count: int, size: int
) -> None:
    """Check a client at any point of its body; it uses its connection again where it may."""
    with httpx.Client(base_url=served.url, timeout=60) as client:
        for _ in range(5):
            answer = client.post(NATIVE, content=iter([b"x" * size] * count))
            assert answer.status_code == 401
        assert client.get("/livez").status_code == 200
