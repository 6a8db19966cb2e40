"""Text over real sockets: answers, streams, errors, and clients that disconnect."""

import re
import socket
from contextlib import ExitStack
from itertools import takewhile
from pathlib import Path
from typing import Any

import httpx
import pytest

from bitinglip.api import stream_writer
from tests.support.api_server import Served, serve
from tests.support.http_client import CHAT, MESSAGES, NATIVE, PROMPT, error_of
from tests.support.raw_http import raw_request
from tests.support.sse import STREAM_END, events_of
from tests.support.wait import eventually


def test_native_answer_has_text_usage_and_timings(client: httpx.Client) -> None:
    response = client.post(NATIVE, json=PROMPT)
    assert response.status_code == 200
    body = response.json()
    assert body["status"] == "completed"
    assert body["result"] == {"text": "one two", "finish_reason": "length"}
    assert body["usage"]["total_tokens"] == 3
    assert body["worker_id"] == "demo/0"
    assert response.headers["x-queue-position"] in ("0", "1")  # 1: the model was not loaded
    assert 0 <= float(response.headers["x-bitinglip-overhead-ms"]) < 20_000


def test_native_stream_has_its_events_in_order(client: httpx.Client) -> None:
    response = client.post(NATIVE, json={**PROMPT, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    seen = events_of(response.text)
    names = [name for name, _ in seen if name not in ("queued", "loading")]
    assert names == ["started", "token", "token", "completed"]
    assert seen[-1][1]["result"]["text"] == "one two"


def test_native_stream_reports_errors_in_band(client: httpx.Client) -> None:
    for prompt, last in [("!refuse", "failed"), ("!crash", "failed"), ("!cancel", "cancelled")]:
        response = client.post(NATIVE, json={**PROMPT, "prompt": prompt, "stream": True})
        assert response.status_code == 200
        assert events_of(response.text)[-1][0] == last


def test_chat_answers_whole_and_as_a_stream(client: httpx.Client) -> None:
    body = client.post(CHAT, json=MESSAGES).json()
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["content"] == "one two"
    stream = client.post(CHAT, json={**MESSAGES, "stream": True})
    assert events_of(stream.text)[-1] == STREAM_END


def test_completion_is_answered(client: httpx.Client) -> None:
    body = client.post("/v1/completions", json=PROMPT).json()
    assert body["choices"][0]["text"] == "one two"


def test_openai_stream_that_fails_before_output_is_an_ordinary_error(client: httpx.Client) -> None:
    body = {**MESSAGES, "messages": [{"role": "user", "content": "!refuse"}], "stream": True}
    error_of(client.post(CHAT, json=body), 400, "CONTEXT_LENGTH_EXCEEDED")


def test_openai_stream_that_fails_later_ends_without_done(client: httpx.Client) -> None:
    body = {**MESSAGES, "messages": [{"role": "user", "content": "!crash"}], "stream": True}
    response = client.post(CHAT, json=body)
    assert response.status_code == 200
    assert "[DONE]" not in response.text
    assert events_of(response.text)[-1][1]["error"]["code"] == "worker_crashed"


def test_error_of_a_whole_answer_has_its_status(client: httpx.Client) -> None:
    crash = client.post(NATIVE, json={**PROMPT, "prompt": "!crash"})
    error_of(crash, 502, "WORKER_CRASHED")
    cancelled = client.post(NATIVE, json={**PROMPT, "prompt": "!cancel"})
    error_of(cancelled, 409, "TASK_CANCELLED")
    assert cancelled.headers["x-should-retry"] == "false"


def test_queue_full_is_an_error_with_retry_after(tmp_path: Path) -> None:
    with serve(tmp_path, slots=1, queue={"max_waiting": 1}) as served, ExitStack() as stack:
        for taken in (1, 2):  # one runs, one waits
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", served.port)))
            sock.sendall(raw_request(served, NATIVE, {**PROMPT, "prompt": "!wait"}))
            eventually(lambda taken=taken: served.in_flight == taken)
            if taken == 1:
                eventually(lambda: len(served.workers.jobs) == 1)
        headers = served.headers("inference:text")
        for body in (PROMPT, {**PROMPT, "stream": True}):
            response = httpx.post(served.url + NATIVE, json=body, headers=headers)
            error_of(response, 503, "QUEUE_FULL")
            assert int(response.headers["retry-after"]) >= 1


def test_model_that_is_unknown_or_of_another_kind_is_refused(client: httpx.Client) -> None:
    error = error_of(client.post(NATIVE, json={**PROMPT, "model": "gpt"}), 404, "INVALID_MODEL")
    assert error["details"]["model"] == "gpt"
    assert "demo" in error["details"]["available_models"]
    painter = client.post(CHAT, json={**MESSAGES, "model": "painter"})
    assert error_of(painter, 400, "INVALID_REQUEST")["param"] == "model"
    for name in ("../../etc/passwd", "a/b/c", "demo\0"):
        error_of(client.post(NATIVE, json={**PROMPT, "model": name}), 404, "INVALID_MODEL")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (NATIVE, {**PROMPT, "prompt": "!wait"}),
        (NATIVE, {**PROMPT, "prompt": "!wait", "stream": True}),
        (NATIVE, {**PROMPT, "prompt": "!stall", "stream": True}),
        (CHAT, {"model": "demo", "messages": [{"role": "user", "content": "!wait"}]}),
        ("/v1/completions", {"model": "demo", "prompt": "!wait", "stream": True}),
        ("/v1/completions", {"model": "demo", "prompt": "!stall", "stream": True}),
    ],
)
def test_cancel_follows_when_the_client_disconnects(
    served: Served, path: str, body: dict[str, Any]
) -> None:
    before = len(served.workers.cancelled)
    with socket.create_connection(("127.0.0.1", served.port)) as sock:
        sock.sendall(raw_request(served, path, body))
        eventually(lambda: served.in_flight == 1)
        if body["model"] and body.get("prompt") == "!stall":
            eventually(lambda: b"two" in sock.recv(65536))
    served.wait_idle()
    eventually(lambda: len(served.workers.cancelled) == before + 1)


def silence(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let streams comment on a silence that tests can wait for."""
    server = served.services.settings.server
    monkeypatch.setitem(server.__dict__, "stream_comment_interval", 0.05)


@pytest.mark.parametrize("path", [NATIVE, CHAT])
def test_stream_keeps_alive_by_comments(
    served: Served, client: httpx.Client, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    silence(served, monkeypatch)
    messages = [{"role": "user", "content": "!stall"}]
    text = {"prompt": "!stall"} if path == NATIVE else {"messages": messages}
    with client.stream("POST", path, json={"model": "demo", "stream": True, **text}) as response:
        lines = response.iter_lines()
        seen = list(takewhile(lambda line: line != ": keep-alive", lines))
        assert next(line for line in lines if line) == ": keep-alive"
    # beside such lines, clients take a comment for an event
    assert not [line for line in seen if line.startswith("id:")]
    served.wait_idle()


def test_tokens_of_a_stream_are_counted_while_it_runs(
    served: Served, client: httpx.Client, admin: httpx.Client
) -> None:
    def counted() -> float:
        found = re.search(r'tokens_total{kind="completion",model="demo"} (.*)', metrics(admin))
        return float(found[1]) if found else 0.0

    before = counted()
    with client.stream("POST", NATIVE, json={**PROMPT, "prompt": "!stall", "stream": True}):
        eventually(lambda: counted() == before + 2)
    served.wait_idle()
    assert counted() == before + 2


def metrics(admin: httpx.Client) -> str:
    return admin.get("/metrics").text


def test_stream_begins_with_comments_while_its_request_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = {**MESSAGES, "messages": [{"role": "user", "content": "!wait"}], "stream": True}
    with (
        serve(tmp_path, slots=1, queue={"max_waiting": 1}) as served,
        httpx.Client(base_url=served.url, headers=served.headers("inference:text")) as client,
    ):
        silence(served, monkeypatch)
        with client.stream("POST", CHAT, json=waiting) as first:
            assert first.status_code == 200
            with client.stream("POST", CHAT, json=waiting) as second:
                lines = second.iter_lines()
                assert next(line for line in lines if line) == ": queued 1"
                # what is refused before any output still has its own status
                error_of(client.post(CHAT, json=waiting), 503, "QUEUE_FULL")
        served.wait_idle()


def test_send_timeout_ends_a_stream_that_the_client_does_not_read(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    silence(served, monkeypatch)
    monkeypatch.setattr(stream_writer, "SEND_TIMEOUT", 0.2)
    with socket.create_connection(("127.0.0.1", served.port)) as sock:
        sock.sendall(raw_request(served, NATIVE, {**PROMPT, "prompt": "!flood", "stream": True}))
        eventually(lambda: served.in_flight == 1)
        served.wait_idle()


def test_cache_is_off_unless_it_is_turned_on(client: httpx.Client) -> None:
    for _ in range(2):
        answer = client.post(NATIVE, json={**PROMPT, "temperature": 0})
        assert answer.headers["x-cache"] == "BYPASS"
    assert client.get("/health").json()["checks"]["cache"]["detail"] == "off"
