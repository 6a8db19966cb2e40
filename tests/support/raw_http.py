"""Reads HTTP/1.1 responses from a socket, one at a time and no byte more."""

import socket


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
