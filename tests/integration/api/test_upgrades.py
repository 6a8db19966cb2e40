"""Requests for another protocol, over real sockets: nothing of them is read as something else."""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bitinglip.http.connections import Times
from tests.integration.api.test_connections import (
    CAP,
    LIVEZ,
    TIMES,
    connected,
    everything,
    refused,
)
from tests.support.api_server import Served, serve
from tests.support.http_client import NATIVE, PROMPT
from tests.support.raw_http import read_response
from tests.support.wait import eventually

HOST = b"Host: localhost\r\n"
WEBSOCKET = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
HANDSHAKE = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
WATCH = b"GET /ws/inference/task HTTP/1.1\r\n" + HOST + WEBSOCKET + HANDSHAKE
#: as common clients ask for HTTP/2 without TLS
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"

#: handshakes on which the library is silent
SILENT = {
    "with a body": WATCH + b"Content-Length: 5\r\n\r\nhello",
    "with a body to come": WATCH + b"Content-Length: 500000\r\n\r\n",
    "with chunks": WATCH + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "with a long header": WATCH + b"X-Long: " + b"a" * 9000 + b"\r\n\r\n",
    "of a long path": WATCH.replace(b"task", b"a" * 9000, 1) + b"\r\n",
    "of a path that is no ASCII": WATCH.replace(b"task", b"\xc3\xa9", 1) + b"\r\n",
    "of another method": WATCH.replace(b"GET", b"POST", 1) + b"Content-Length: 1\r\n\r\n{",
}


@pytest.fixture(scope="module")
def hurried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Provide a server that gives its clients little time."""
    with serve(tmp_path_factory.mktemp("hurried"), times=TIMES) as served:
        yield served


def post(served: Served, *headers: bytes, **fields: object) -> bytes:
    body = json.dumps({**PROMPT, **fields}).encode()
    lines = [
        b"POST %b HTTP/1.1\r\n" % NATIVE.encode(),
        HOST,
        b"X-Api-Key: %b\r\n" % served.keys["inference:text"].encode(),
        b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body),
        *headers,
    ]
    return b"".join(lines) + b"\r\n" + body


@pytest.mark.parametrize("name", SILENT)
def test_handshake_that_is_invalid_is_refused_and_ends(hurried: Served, name: str) -> None:
    """Held without an answer and without a time limit, such connections filled the server."""
    with connected(hurried) as sock:
        sock.sendall(SILENT[name])
        refused(everything(sock), 400)
    eventually(lambda: hurried.connections.open == 0)


def test_handshakes_that_are_invalid_are_closed_for_new_connections(tmp_path: Path) -> None:
    limits = {"max_connections": CAP}
    with serve(tmp_path, server=limits, times=Times(linger=60)) as served, ExitStack() as stack:
        for _ in range(CAP):
            sock = stack.enter_context(connected(served))
            sock.sendall(SILENT["with a body"])
        eventually(lambda: len(served.websockets()) == CAP)
        for _ in range(3):
            sock = stack.enter_context(connected(served))
            sock.sendall(LIVEZ)
            assert read_response(sock).startswith(b"HTTP/1.1 200")
        assert served.websockets()
        served.server.should_exit = True  # it ends in order while some of them are open
        eventually(lambda: not served.connections.open)


def test_handshake_behind_a_response_is_refused(served: Served) -> None:
    """The response would be written between the frames, without regard to what is read of it."""
    with connected(served) as sock:
        sock.sendall(post(served, prompt="!flood", stream=True))
        assert sock.recv(12) == b"HTTP/1.1 200"
        eventually(lambda: served.in_flight == 1)
        sock.sendall(WATCH + b"\r\n")
        assert b"HTTP/1.1" not in everything(sock)  # not even a refusal, inside of the stream
    served.wait_idle()
    assert served.websockets() == []


def test_upgrade_to_an_unknown_protocol_is_ignored(served: Served) -> None:
    """Send more requests in the same bytes, and later."""
    for request in (LIVEZ[:-2] + H2C + b"\r\n", post(served, H2C)):
        with connected(served) as sock:
            sock.sendall(request + LIVEZ)
            for _ in range(2):
                assert read_response(sock).startswith(b"HTTP/1.1 200")
            sock.sendall(request)
            assert read_response(sock).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("upgrade", [H2C, b"Connection: upgrade\r\nUpgrade: websocket, h2c\r\n"])
@pytest.mark.parametrize("chunked", [False, True])
def test_upgrade_with_a_body_is_one_request(served: Served, upgrade: bytes, chunked: bool) -> None:
    """Behind a proxy, another client would get the answer to it."""
    hidden = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    framing, body = b"Content-Length: %d\r\n" % len(hidden), hidden
    if chunked:
        framing, body = b"Transfer-Encoding: chunked\r\n", b"%x\r\n%b\r\n" % (len(hidden), hidden)
        body += b"0\r\n\r\n"
    head = b"POST %b HTTP/1.1\r\n" % NATIVE.encode() + HOST + upgrade + framing + b"\r\n"
    with connected(served) as sock:
        sock.sendall(head)
        first = read_response(sock)
        assert first.startswith(b"HTTP/1.1 401")
        sock.sendall(body + LIVEZ)
        if b"connection: close" in first.lower():
            assert everything(sock) == b""
        else:
            assert b'"alive"' in read_response(sock)
    with connected(served) as sock:
        sock.sendall(head + body + LIVEZ)
        assert read_response(sock).startswith(b"HTTP/1.1 401")
        assert b'"alive"' in read_response(sock)


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"identity", b"chunked;q=1", b"xchunked"])
def test_unknown_transfer_coding_is_refused(served: Served, coding: bytes) -> None:
    """Two readers of one request might see two bodies."""
    head = b"POST %b HTTP/1.1\r\n" % NATIVE.encode() + HOST
    for header in (b"%b\r\n" % coding, b"%b\r\nTransfer-Encoding: chunked\r\n" % coding):
        with connected(served) as sock:
            sock.sendall(head + b"Transfer-Encoding: " + header + b"\r\n0\r\n\r\n" + LIVEZ)
            refused(everything(sock), 400)


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://localhost/livez", b"200"),
        (b"HTTP://LOCALHOST:80/livez", b"200"),
        (b"http://evil.example/livez", b"400"),
        (b"http://evil.example", b"400"),
        (b"http://localhost@evil.example/livez", b"400"),
        (b"http://user:password@localhost/livez", b"400"),
    ],
)
def test_host_of_an_absolute_target_counts(served: Served, target: bytes, status: bytes) -> None:
    """It replaces the Host header (RFC 9112, 3.2.2), so what is checked is what was asked for."""
    with connected(served) as sock:
        sock.sendall(b"GET %b HTTP/1.1\r\n" % target + HOST + b"\r\n")
        assert read_response(sock).split()[1] == status


@pytest.mark.parametrize("target", [b"localhost:80", b"/livez", b"http://localhost/livez"])
def test_tunnel_is_refused(served: Served, target: bytes) -> None:
    with connected(served) as sock:
        sock.sendall(b"CONNECT %b HTTP/1.1\r\n" % target + HOST + b"\r\n" + LIVEZ)
        refused(everything(sock), 400)


def test_handshake_timeout_is_short(hurried: Served) -> None:
    """Check that a part of a handshake cannot hold a connection."""
    with socket.create_connection(("127.0.0.1", hurried.port), timeout=60) as sock:
        sock.sendall(WATCH)
        refused(everything(sock), 408)
