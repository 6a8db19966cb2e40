"""A watcher that does not read is given up; the task and the others are not."""

import json
import socket
from collections.abc import Iterator

import httpx
import pytest

from bitinglip.api.tasks import watch
from bitinglip.http import websocket
from bitinglip.scheduling.event_log import EventLog
from bitinglip.settings import Settings
from tests.support.fake_services import Served, serve
from tests.support.http_client import NATIVE, PROMPT, TEXT
from tests.support.wait import eventually
from tests.support.websocket_client import heard, open_watch
from workers import protocol

PIECES = 300


async def gush(event_log: EventLog) -> None:
    """More than the buffers of any connection hold: 30 MB, then the end."""
    job = event_log.job
    event_log.put(protocol.Started(id=job.id))
    for index in range(PIECES):
        event_log.put(protocol.TextDelta(id=job.id, text="x" * 100_000, index=index))
    event_log.put(
        protocol.TextDone(
            id=job.id, text="", finish_reason="length", prompt_tokens=1, completion_tokens=PIECES
        )
    )


@pytest.fixture
def gushing() -> Iterator[Served]:
    with serve(Settings(), gush) as served:
        yield served


def shake_hands(served: Served, task_id: str, host: str = "localhost") -> socket.socket:
    """A watcher who says hello and then reads no more than a little."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(20)
    sock.connect(("127.0.0.1", served.port))
    sock.sendall(
        b"GET /ws/inference/%b HTTP/1.1\r\nHost: %b\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-API-Key: k-inference:text\r\n\r\n"
        % (task_id.encode(), host.encode())
    )
    return sock


def test_a_stalled_watcher_is_closed_with_1013_and_nobody_else_notices(
    gushing: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "SEND_TIMEOUT", 0.3)
    monkeypatch.setattr(websocket, "LINGER_SECONDS", 2.0)
    answer = httpx.post(gushing.url + NATIVE, json=PROMPT, headers=TEXT)
    assert answer.status_code == 200
    task_id = json.loads(answer.text)["task_id"]
    with shake_hands(gushing, task_id) as stalled:
        assert stalled.recv(12) == b"HTTP/1.1 101"
        with open_watch(gushing.url, task_id, **TEXT) as reader:
            messages, code = heard(reader)
        assert (len(messages), code) == (PIECES + 2, 1000)
        eventually(lambda: any(each.close_sent for each in gushing.websockets()), 5)
        taken = b""
        store_uploads = 0
        while chunk := stalled.recv(1 << 16):
            store_uploads += len(chunk)
            taken = (taken + chunk)[-4096:]
    # 0x88: a close frame; then its length and the code.
    assert b"\x88" in taken
    frame = taken[taken.rindex(b"\x88") :]
    assert int.from_bytes(frame[2:4], "big") == 1013
    assert store_uploads < 100_000 * PIECES / 2


def test_a_watcher_that_never_reads_is_cut_off(
    gushing: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "SEND_TIMEOUT", 0.2)
    monkeypatch.setattr(websocket, "LINGER_SECONDS", 0.2)
    answer = httpx.post(gushing.url + NATIVE, json=PROMPT, headers=TEXT)
    task_id = json.loads(answer.text)["task_id"]
    with shake_hands(gushing, task_id):
        eventually(lambda: len(gushing.websockets()) == 1, 5)
        eventually(lambda: not gushing.websockets(), 5)


def test_a_handshake_under_a_foreign_host_is_refused(gushing: Served) -> None:
    with shake_hands(gushing, "task-x", host="evil.example") as sock:
        answer = b""
        while chunk := sock.recv(65536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"INVALID_REQUEST" in answer
