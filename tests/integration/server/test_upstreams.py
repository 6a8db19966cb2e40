"""Models that other servers answer for, over real HTTP between real gateways."""

import io
import json
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.support.api_server import Served, serve
from tests.support.sse import iter_events
from tests.support.wait import eventually

CHAT = "/v1/chat/completions"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def chat(model: str, words: str = "hello", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": words}], **fields}


class Scripted(BaseHTTPRequestHandler):
    """Answers as ``reply`` says: a status and a body, or pieces of a stream."""

    reply: Any
    seen: list[dict[str, Any]]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send(200, b'{"data": []}')

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["content-length"]))
        is_json = self.headers["content-type"] == "application/json"
        body = json.loads(data) if is_json else data
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.seen.append({"path": self.path, "body": body, "headers": headers})
        status, data = self.reply
        self._send(status, data)

    def _send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.send_header("connection", "close")
        self.send_header("set-cookie", "tracked=1; Path=/")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def scripted(reply: Any, port: int = 0) -> Iterator[type[Scripted]]:
    handler = type("Handler", (Scripted,), {"reply": reply, "seen": []})
    with ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        handler.url = f"http://127.0.0.1:{server.server_port}/v1"  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield handler
        finally:
            server.shutdown()
            thread.join()


ANSWER = (
    b'data: {"choices": [{"index": 0, "delta": {"content": "from there"}}]}\n\n'
    b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
    b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}\n\n'
    b"data: [DONE]\n\n"
)


def answer(delta: str, index: int = 0, usage: str = "{}") -> bytes:
    choice = f'{{"index": {index}, "delta": {delta}, "finish_reason": "stop"}}'
    return f'data: {{"choices": [{choice}], "usage": {usage}}}\n\ndata: [DONE]\n\n'.encode()


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Provide a server of ours that answers for another one's models."""
    with serve(tmp_path_factory.mktemp("there")) as served:
        yield served


@pytest.fixture(scope="module")
def script() -> Iterator[type[Scripted]]:
    with scripted((200, ANSWER)) as handler:
        yield handler


VECTORS = (
    b'{"object": "list", "data": [{"index": 1, "embedding": [2, 0.25]},'
    b' {"index": 0, "embedding": "AAAAPwAAgL8="}], "usage": {"prompt_tokens": 7}}'
)


@pytest.fixture(scope="module")
def vectors() -> Iterator[type[Scripted]]:
    with scripted((200, VECTORS)) as handler:
        yield handler


@pytest.fixture(scope="module")
def heard() -> Iterator[type[Scripted]]:
    with scripted((200, b'{"text": "so it was", "duration": 1.5, "language": "english"}')) as each:
        yield each


@pytest.fixture(scope="module")
def here(
    there: Served, script: Any, vectors: Any, heard: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("here")
    (root / "key").touch(0o600)
    (root / "key").write_text(there.keys["admin"] + "\n")
    key = {"key_file": str(root / "key")}
    models: dict[str, Any] = {
        "far": {"upstream": {"url": f"{there.url}/v1", "model": "demo", **key}},
        "second": {"upstream": {"url": [f"http://127.0.0.1:{free_port()}/v1", script.url], **key}},
        "scripted": {"upstream": {"url": script.url, **key}},
        "gone": {"upstream": f"http://127.0.0.1:{free_port()}/v1"},
        "vectors": {"upstream": {"url": vectors.url, "kind": "embedding"}},
        "hearing": {"upstream": {"url": heard.url, "kind": "transcription"}},
        "seeing": {"upstream": {"url": script.url, "kind": "vision"}},
        "refused": {"upstream": {"url": f"{there.url}/v1", "model": "demo"}},
    }
    with serve(root, models=models) as served:
        yield served


@pytest.fixture
def client(here: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=here.url, headers=here.headers("admin"), timeout=60) as client:
        yield client
    here.wait_idle()


def test_upstream_answers_like_a_model_that_is_here(client: httpx.Client, there: Served) -> None:
    answer = client.post(CHAT, json=chat("far")).json()
    assert answer["choices"][0]["message"]["content"] == "one two"
    assert answer["usage"]["total_tokens"] == 3
    with client.stream("POST", CHAT, json=chat("far", stream=True)) as stream:
        lines = [line for line in stream.iter_lines() if line.startswith("data: {")]
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines]
    assert [each["content"] for each in deltas if each.get("content")] == ["one", " two"]
    body = {"model": "far", "prompt": "hello", "stream": True}
    with client.stream("POST", "/api/v1/inference/text-generation", json=body) as stream:
        names = [name for name, _ in iter_events(stream.iter_lines())]
    assert names[-4:] == ["started", "token", "token", "completed"]
    listed = client.get("/v1/models").json()["data"]
    assert "far" in [each["id"] for each in listed]
    there.wait_idle()


def test_upstream_s_request_ends_when_its_client_goes(client: httpx.Client, there: Served) -> None:
    before = there.in_flight
    with client.stream("POST", CHAT, json=chat("far", "!stall", stream=True)) as stream:
        next(stream.iter_lines())
        eventually(lambda: there.in_flight == before + 1)
    there.wait_idle()


def test_upstream_gets_its_own_key_and_name(
    client: httpx.Client, script: Any, there: Served
) -> None:
    script.seen.clear()
    answer = client.post(CHAT, json=chat("scripted", max_tokens=7))
    assert answer.json()["choices"][0]["message"]["content"] == "from there"
    (seen,) = script.seen
    assert seen["path"] == "/v1/chat/completions"
    assert seen["headers"]["authorization"] == f"Bearer {there.keys['admin']}"
    # Nothing that would be unpacked without a bound, and nothing that another client's request left
    assert seen["headers"]["accept-encoding"] == "identity"
    assert "cookie" not in seen["headers"]
    assert (seen["body"]["model"], seen["body"]["max_tokens"]) == ("scripted", 7)


def test_upstream_that_does_not_answer_is_passed_over(client: httpx.Client) -> None:
    for _ in range(3):
        assert client.post(CHAT, json=chat("second")).status_code == 200
    status = client.get("/api/v1/cluster/status").json()
    away, well = (each for each in status["upstreams"] if each["model"] == "second")
    assert (away["state"], away["in_flight"], well["state"]) == ("failing", 0, "well")
    assert ("answer: " in away["reason"], away["again_seconds"] > 0) == (True, True)
    assert (well["reason"], well["again_seconds"]) == (None, 0)


def test_upstream_s_address_is_told_to_admins_only(client: httpx.Client, here: Served) -> None:
    assert client.post(CHAT, json=chat("second")).status_code == 200

    def addresses(headers: dict[str, str]) -> set[str | None]:
        status = httpx.get(f"{here.url}/api/v1/cluster/status", headers=headers).json()
        return {each["url"] for each in status["upstreams"]}

    assert None not in addresses(here.headers("admin"))
    assert addresses(here.headers("cluster:read")) == {None}


def test_upstream_without_any_server_says_so(client: httpx.Client) -> None:
    answer = client.post(CHAT, json=chat("gone"))
    assert answer.status_code == 502
    assert "no connection to it" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("reply", "status", "words"),
    [
        ((400, b'{"error": {"message": "too hot"}}'), 400, "too hot"),
        ((400, b"nonsense"), 500, "status 400"),
        ((401, b"{}"), 500, "refuses our key"),
        ((404, b"{}"), 500, "upstream.model"),
        ((429, b"{}"), 503, "busy"),
        ((500, b"{}"), 500, "status 500"),
        ((200, b"nonsense"), 502, "broke off"),
        ((200, b'data: {"choices": 5}\n\n'), 502, "broke off"),
        ((200, b"data: not json\n\n"), 502, "broke off"),
        ((200, b'data: {"error": {"message": "it broke"}}\n\n'), 500, "it broke"),
        ((200, ANSWER[:80]), 502, "broke off"),
        ((200, answer('{"content": "\\ud800"}')), 500, "cannot be passed on"),
        ((200, answer('{"content": "a"}', index=-1)), 502, "another form"),
        (
            (
                200,
                answer('{"tool_calls": [{"id": "c", "function": {"name": "%s"}}]}' % ("n" * 999)),
            ),
            500,
            "cannot be passed on",
        ),
        ((200, b'data: {"error": {"message": "\\ud800"}}\n\n'), 500, "?"),
        ((200, b'data: {"error": 5}\n\n'), 500, "no reason"),
        ((200, b"[" * 100_000), 502, "broke off"),
        ((503, b"[" * 60_000), 503, "busy"),
    ],
)
def test_upstream_s_errors_are_clear_ones(
    client: httpx.Client, script: Any, reply: tuple[int, bytes], status: int, words: str
) -> None:
    script.reply = reply
    try:
        answer = client.post(CHAT, json=chat("scripted"))
    finally:
        script.reply = (200, ANSWER)
    assert (answer.status_code, words in answer.text) == (status, True), answer.text
    assert client.post(CHAT, json=chat("scripted")).status_code == 200  # it is used again


def test_upstream_s_counts_are_held_to_what_they_can_be(client: httpx.Client, script: Any) -> None:
    script.reply = (
        200,
        answer(
            '{"content": "a"}', usage=f'{{"prompt_tokens": {10**30}, "completion_tokens": true}}'
        ),
    )
    try:
        usage = client.post(CHAT, json=chat("scripted")).json()["usage"]
    finally:
        script.reply = (200, ANSWER)
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (2**31 - 1, 1)


def test_upstream_s_key_is_told_to_no_client(
    client: httpx.Client, script: Any, there: Served
) -> None:
    key = there.keys["admin"]
    for status in (400, 200):
        told = json.dumps({"error": {"message": f"the key {key} may not"}})
        script.reply = (status, told.encode() if status == 400 else f"data: {told}\n\n".encode())
        try:
            refused = client.post(CHAT, json=chat("scripted"))
        finally:
            script.reply = (200, ANSWER)
        assert "the key *** may not" in refused.text


def test_upstream_s_address_is_not_told_to_clients(client: httpx.Client) -> None:
    refused = client.post(CHAT, json=chat("gone"))
    assert (refused.status_code, "127.0.0.1" in refused.text) == (502, False), refused.text


def test_upstream_that_comes_back_is_used_again(tmp_path: Path) -> None:
    port = free_port()
    models = {"m": {"upstream": {"url": f"http://127.0.0.1:{port}/v1"}}}
    with serve(tmp_path, models=models) as own:
        with httpx.Client(base_url=own.url, headers=own.headers("admin"), timeout=60) as mine:
            with scripted((200, ANSWER), port):
                assert mine.post(CHAT, json=chat("m")).status_code == 200
            assert mine.post(CHAT, json=chat("m")).status_code == 502
            with scripted((200, ANSWER), port):
                deadline = time.monotonic() + 30
                while mine.post(CHAT, json=chat("m")).status_code != 200:
                    assert time.monotonic() < deadline
        own.wait_idle()


def test_upstream_is_asked_for_text_only(client: httpx.Client) -> None:
    body = {"model": "far", "input": "text"}
    assert client.post("/v1/embeddings", json=body).status_code == 400
    refused = client.post(CHAT, json=chat("far", logprobs=True, top_logprobs=1))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "logprobs")


@pytest.mark.parametrize(
    "field",
    [
        {"regex": "a+"},
        {"choice": ["a", "b"]},
        {"grammar": 'start: "a"'},
        {"typical_p": 0.5},
        {"add_generation_prompt": False},
    ],
    ids=str,
)
def test_upstream_s_parameters_are_those_it_takes(
    client: httpx.Client, field: dict[str, Any]
) -> None:
    """Neither the command nor the dashboard lists a parameter that is refused."""
    refused = client.post("/api/v1/inference/text-generation", json=chat("far", **field))
    listed = client.get("/api/v1/models/far").json()["supported_parameters"]
    assert refused.json()["error"]["code"] == "UNSUPPORTED_PARAMETER", refused.text
    assert "temperature" in listed
    assert not field.keys() & listed.keys()


def test_upstream_makes_vectors(client: httpx.Client, vectors: Any) -> None:
    body = {"model": "vectors", "input": ["one", "two"], "dimensions": 2}
    answer = client.post("/v1/embeddings", json=body).json()
    assert [each["embedding"] for each in answer["data"]] == [[0.5, -1.0], [2.0, 0.25]]
    assert answer["usage"]["prompt_tokens"] == 7
    assert vectors.seen[-1]["path"] == "/v1/embeddings"
    assert vectors.seen[-1]["body"]["input"] == ["one", "two"]
    assert client.get("/api/v1/models/vectors").json()["type"] == "embedding"
    refused = client.post("/v1/embeddings", json={**body, "prompt_name": "query"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt_name")
    assert client.post(CHAT, json=chat("vectors")).status_code == 400


def test_upstream_that_breaks_off_making_vectors_ends_in_one_error(
    client: httpx.Client, vectors: Any
) -> None:
    body = {"model": "vectors", "input": ["one", "two"]}
    before, vectors.reply = vectors.reply, (200, b'{"data": []}')
    try:
        failed = client.post("/v1/embeddings", json=body)
        assert (failed.status_code, failed.json()["error"]["code"]) == (502, "worker_crashed")
    finally:
        vectors.reply = before
    eventually(lambda: client.post("/v1/embeddings", json=body).status_code == 200)


def picture_file() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(buffer, "png")
    return buffer.getvalue()


def test_upstream_gets_the_pictures_of_a_message(client: httpx.Client, script: Any) -> None:
    url = "data:image/png;base64," + b64encode(picture_file()).decode()
    picture = {"type": "image_url", "image_url": {"url": url}}
    content = [{"type": "text", "text": "what is this"}, picture, {"type": "text", "text": "?"}]
    asked = {"model": "seeing", "messages": [{"role": "user", "content": content}]}
    answer = client.post(CHAT, json=asked).json()
    assert answer["choices"][0]["message"]["content"] == "from there"
    (message,) = script.seen[-1]["body"]["messages"]
    assert message["content"] == content
    refused = client.post(CHAT, json={**asked, "model": "scripted"})
    assert refused.status_code == 400


def test_upstream_transcribes_the_sound_as_it_came(client: httpx.Client, heard: Any) -> None:
    sound = b"RIFF" + bytes(600_000)
    form: dict[str, Any] = {
        "model": (None, "hearing"),
        "language": (None, "en"),
        "file": ("s.wav", sound),
    }
    answer = client.post("/v1/audio/transcriptions", files=form)
    assert (answer.status_code, answer.json()["text"]) == (200, "so it was"), answer.text
    seen = heard.seen[-1]
    assert seen["path"] == "/v1/audio/transcriptions"
    assert sound in seen["body"]
    assert b"s.wav" not in seen["body"]
    assert b'name="model"\r\n\r\nhearing\r\n' in seen["body"]
    usage = client.get("/api/v1/usage", params={"group_by": "model"}).json()["data"]
    (row,) = [each for each in usage if each["model"] == "hearing"]
    assert row["audio_seconds"] == 1.5
