"""WebSockets: a watcher that does not read is disconnected; the task and the others go on."""

import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from bitinglip.api.tasks import watch
from bitinglip.http import websocket
from tests.support.api_server import Served, serve
from tests.support.http_client import NATIVE, PROMPT
from tests.support.logs import CaughtLogs
from tests.support.wait import eventually
from tests.support.websocket_client import heard, open_watch
from workers import protocol

PIECES = 300


async def gush(job: protocol.Job) -> AsyncIterator[protocol.JobEvent]:
    """Yield more than the buffers of any connection hold: 30 MB, then the end."""
    yield protocol.Started(id=job.id)
    for index in range(PIECES):
        yield protocol.TextDelta(id=job.id, text="x" * 100_000, index=index)
    yield protocol.TextDone(
        id=job.id,
        choices=(protocol.TextChoice(text="", finish_reason="length"),),
        prompt_tokens=1,
        completion_tokens=PIECES,
    )


@pytest.fixture
def gushing(tmp_path: Path) -> Iterator[Served]:
    with serve(tmp_path, gush) as served:
        yield served


def shake_hands(
    served: Served, task_id: str, host: str = "localhost", more: bytes = b""
) -> socket.socket:
    """Connect a watcher that reads no more than the test reads."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(60)
    sock.connect(("127.0.0.1", served.port))
    sock.sendall(
        b"GET /ws/inference/%b HTTP/1.1\r\nHost: %b\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-API-Key: %b\r\n%b\r\n"
        % (task_id.encode(), host.encode(), served.keys["inference:text"].encode(), more)
    )
    return sock


def test_watcher_that_stalls_is_closed_with_1013_and_others_are_not(
    gushing: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "SEND_TIMEOUT", 1.5)  # of which the reader may miss much
    monkeypatch.setattr(websocket, "LINGER_SECONDS", 2.0)
    answer = httpx.post(
        gushing.url + NATIVE, json=PROMPT, headers=gushing.headers("inference:text")
    )
    assert answer.status_code == 200
    task_id = json.loads(answer.text)["task_id"]
    with shake_hands(gushing, task_id) as stalled:
        assert stalled.recv(12) == b"HTTP/1.1 101"
        with open_watch(gushing.url, task_id, **gushing.headers("inference:text")) as reader:
            messages, code = heard(reader)
        tokens = [data for name, data in messages if name == "token"]
        assert (len(tokens), code) == (PIECES, 1000)
        eventually(lambda: any(each.close_sent for each in gushing.websockets()))
        taken = b""
        received = 0
        while chunk := stalled.recv(1 << 16):
            received += len(chunk)
            taken = (taken + chunk)[-4096:]
    # 0x88: a close frame; then its length and the code.
    assert b"\x88" in taken
    frame = taken[taken.rindex(b"\x88") :]
    assert int.from_bytes(frame[2:4], "big") == 1013
    assert received < 100_000 * PIECES / 2


def test_watcher_that_never_reads_is_cut_off(
    gushing: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "SEND_TIMEOUT", 0.2)
    monkeypatch.setattr(websocket, "LINGER_SECONDS", 0.2)
    answer = httpx.post(
        gushing.url + NATIVE, json=PROMPT, headers=gushing.headers("inference:text")
    )
    task_id = json.loads(answer.text)["task_id"]
    with shake_hands(gushing, task_id):
        eventually(lambda: len(gushing.websockets()) == 1)
        eventually(lambda: not gushing.websockets())


def frame(opcode: int, data: bytes = b"", *, final: bool = True) -> bytes:
    """Make a client's frame; its mask is zero."""
    return bytes([final << 7 | opcode, 0x80 | len(data)]) + bytes(4) + data


TEXT, CONTINUATION, PING, PONG = 1, 0, 9, 10
FLOODS = {
    "pings": (b"", frame(PING, b"p" * 125)),
    "empty pings": (b"", frame(PING)),
    "pongs": (b"", frame(PONG)),
    "messages": (b"", frame(TEXT, b"a")),
    "fragments": (frame(TEXT, final=False), frame(CONTINUATION, final=False)),
}


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("patient")) as served:
        yield served


def waiting_task(served: Served) -> str:
    """Begin a task that says little and does not end."""
    body = {**PROMPT, "prompt": "!stall", "async": True}
    answer = httpx.post(served.url + NATIVE, json=body, headers=served.headers("inference:text"))
    assert answer.status_code == 202, answer.text
    return str(answer.json()["task_id"])


@pytest.mark.parametrize("name", FLOODS)
def test_watcher_that_floods_is_closed_with_1008(patient: Served, name: str) -> None:
    before = patient.connections.refused["frames"]
    start, unit = FLOODS[name]
    with shake_hands(patient, waiting_task(patient)) as flooding:
        assert flooding.recv(12) == b"HTTP/1.1 101"
        with contextlib.suppress(OSError):
            flooding.sendall(start + unit * 50_000)
        eventually(lambda: patient.connections.refused["frames"] == before + 1)
        eventually(lambda: not patient.websockets())


def test_watcher_may_ping_and_talk_within_bounds(patient: Served) -> None:
    with shake_hands(patient, waiting_task(patient)) as talking:
        assert talking.recv(12) == b"HTTP/1.1 101"
        talking.sendall(b"".join(frame(TEXT, b"hello") + frame(PING, b"%d" % n) for n in range(45)))
        heard = b""
        while frame_of_server(PONG, b"44") not in heard:
            piece = talking.recv(65536)
            assert piece, heard
            heard += piece
        assert all(frame_of_server(PONG, b"%d" % n) in heard for n in range(45))
        [protocol_object] = patient.websockets()
        assert protocol_object.queue.empty()
        assert not protocol_object.frames


def frame_of_server(opcode: int, data: bytes) -> bytes:
    return bytes([0x80 | opcode, len(data)]) + data


def test_pings_of_a_watcher_that_reads_nothing_are_not_answered(gushing: Served) -> None:
    answer = httpx.post(
        gushing.url + NATIVE, json=PROMPT, headers=gushing.headers("inference:text")
    )
    with shake_hands(gushing, json.loads(answer.text)["task_id"]) as stalled:
        assert stalled.recv(12) == b"HTTP/1.1 101"
        [watching] = gushing.websockets()
        eventually(lambda: not watching.writable.is_set())
        before = watching.transport.get_write_buffer_size()
        stalled.sendall(frame(PING, b"p" * 125) * 90)
        eventually(lambda: watching._frames >= 90)
        assert watching.transport.get_write_buffer_size() <= before


def test_frames_before_the_handshake_s_answer_end_the_connection(patient: Served) -> None:
    """Send frames before the 101, as no WebSocket client does: a ping must not be answered."""
    for _ in range(4):
        with shake_hands(patient, "task-none") as early:
            with contextlib.suppress(OSError):
                early.sendall(frame(PING, b"early"))
            with contextlib.suppress(OSError):
                assert b"early" not in answer_to(early)


def answer_to(sock: socket.socket) -> bytes:
    answer = b""
    while chunk := sock.recv(65536):
        answer += chunk
    return answer


@pytest.mark.parametrize(
    ("host", "more", "status", "code"),
    [
        ("evil.example", b"", 400, b"INVALID_REQUEST"),
        ("localhost", b"Origin: https://evil.example\r\n", 403, b"INSUFFICIENT_SCOPE"),
        ("localhost", b"Origin: http://[::1\r\n", 403, b"INSUFFICIENT_SCOPE"),
        ("localhost", b"Origin: null\r\n", 403, b"INSUFFICIENT_SCOPE"),
        ("localhost", b"Sec-Fetch-Site: cross-site\r\n", 403, b"INSUFFICIENT_SCOPE"),
        ("localhost", b"X-API-Key: other\r\n", 400, b"INVALID_REQUEST"),
        ("localhost", b"Content-Encoding: gzip\r\n", 415, b"UNSUPPORTED_MEDIA_TYPE"),
        ("localhost", b"Origin: http://localhost\r\n", 404, b"TASK_NOT_FOUND"),
    ],
)
def test_handshake_that_is_refused_has_its_error_and_no_log_line(
    served: Served,
    caplog: CaughtLogs,
    host: str,
    more: bytes,
    status: int,
    code: bytes,
) -> None:
    with caplog.at_level(logging.WARNING), shake_hands(served, "task-x", host, more) as sock:
        answer = answer_to(sock)
    assert answer.startswith(b"HTTP/1.1 %d" % status), answer
    assert code in answer
    ours = ("uvicorn", "websockets", "asyncio", "bitinglip.api", "bitinglip.http")
    assert not [each for each in caplog.records if each.name.startswith(ours)]


def test_watchers_of_ended_tasks_are_closed_for_new_connections(tmp_path: Path) -> None:
    """They no longer count among the requests of their key, and need not answer the close."""
    with serve(tmp_path, server={"max_connections": 4}) as served:
        headers = served.headers("inference:text")
        answer = httpx.post(served.url + NATIVE, json=PROMPT, headers=headers)
        with contextlib.ExitStack() as stack:
            for _ in range(12):
                sock = stack.enter_context(shake_hands(served, answer.json()["task_id"]))
                assert sock.recv(12) == b"HTTP/1.1 101"
                eventually(lambda: served.connections.states()["busy"] == 0)
            assert httpx.get(served.url + "/api/v1/tasks", headers=headers).status_code == 200
