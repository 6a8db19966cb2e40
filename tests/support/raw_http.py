"""Writes HTTP/1.1 requests, and reads responses from a socket, one at a time and no byte more."""

import json
import socket
from typing import Any

from tests.support.api_server import Served


def raw_request(served: Served, path: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    key = f"X-API-Key: {served.keys['inference:text']}\r\nContent-Length: {len(data)}\r\n\r\n"
    return (head + key).encode() + data


def asked(served: Served, path: str, body: dict[str, Any]) -> socket.socket:
    """Send a request; to close the socket is to leave before its answer."""
    sock = socket.create_connection(("127.0.0.1", served.port), timeout=60)
    sock.sendall(raw_request(served, path, body))
    return sock


def read_response(sock: socket.socket) -> bytes:
    """Read one response with a declared length. Raises AssertionError if it does not arrive."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += _read(sock, 1, head)
    if head.split(b" ", 2)[1] == b"100":
        return head
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
    body = b""
    while missing := int(fields[b"content-length"]) - len(body):
        body += _read(sock, missing, head + body)
    return head + body


def _read(sock: socket.socket, size: int, before: bytes) -> bytes:
    piece = sock.recv(size)
    assert piece, f"the connection ended after {before!r}"
    return piece
