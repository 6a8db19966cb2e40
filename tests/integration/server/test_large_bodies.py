"""Large bodies on a real server: no other request waits for them, and memory is bounded."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import httpx
import psutil
import pytest

from tests.support.awake import AwakeClock, Waits
from tests.support.server import Server

NATIVE = "/api/v1/inference/text-generation"
MB = 2**20
AT_ONCE = 4
SLOW_SECONDS = 1.0  #: milliseconds on a quiet machine, and four to eight seconds without bounds


def _many_keys() -> bytes:
    keys = ",".join(f'"{i:x}":1' for i in range(1_000_000))
    return b'{"model":"demo-echo","prompt":"p",' + keys.encode() + b"}"


def _deep_lists() -> bytes:
    return b'{"model":"m","prompt":["x"' + (b"," + b"[" * 60 + b"]" * 60) * 80_000 + b"]}"


def _many_wrong_values() -> bytes:
    wrong = {f"k{i}": 1 for i in range(32_000)}
    return json.dumps({"model": "m", "prompt": "p", **wrong}).encode()


def _many_biases() -> bytes:
    biases = ",".join(f'"{i}":1' for i in range(700_000))
    return b'{"model":"demo-echo","prompt":"p","logit_bias":{' + biases.encode() + b"}}"


BODIES = {
    "deep lists": _deep_lists,
    "unknown keys": _many_keys,
    "biases": _many_biases,
    "wrong values, as many as may be": _many_wrong_values,
}


def _post(server: Server, body: bytes) -> httpx.Response:
    headers = {**server.headers, "content-type": "application/json"}
    return httpx.post(server.url + NATIVE, content=body, headers=headers, timeout=60)


@pytest.mark.parametrize("make", BODIES.values(), ids=BODIES.keys())
def test_large_body_delays_no_other_request(server: Server, make: Callable[[], bytes]) -> None:
    body = make()
    assert len(body) < 10 * MB
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    most = 0
    with (
        httpx.Client(base_url=server.url, timeout=60) as client,
        AwakeClock() as clock,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        waits = Waits(clock)
        client.get("/livez")
        sent = [pool.submit(_post, server, body) for _ in range(AT_ONCE)]
        while wait(sent, timeout=0.01).not_done:
            waits.begin()
            assert client.get("/livez").status_code == 200
            waits.end()
            most = max(most, process.memory_info().rss)
    for answer in sent:
        assert answer.result().status_code == 400, answer.result().text
        assert answer.result().json()["error"]["code"] == "INVALID_REQUEST"
    assert waits.share_of(SLOW_SECONDS) < 0.5
    assert most - before < 400 * MB


@pytest.mark.parametrize("surface", [NATIVE, "/v1/chat/completions"])
def test_prompt_beyond_any_context_is_refused_before_the_model_is_loaded(
    server: Server, surface: str
) -> None:
    text = "a" * 9_000_000
    native = {"model": "demo-text", "prompt": text}
    chat = {"model": "demo-text", "messages": [{"role": "user", "content": text}]}
    body = native if surface == NATIVE else chat
    with server.client() as client:
        client.post("/api/v1/models/demo-text/unload")
        error = client.post(surface, json=body).json()["error"]
        assert client.get("/api/v1/models/demo-text").json()["status"] == "available"
    assert error["code"].upper() == "CONTEXT_LENGTH_EXCEEDED"
    assert error["details"]["prompt_tokens"] > error["details"]["max_context"]


def test_large_body_that_is_good_is_answered(server: Server) -> None:
    body = json.dumps({"model": "demo-echo", "prompt": "a, [b]", "max_tokens": 2})
    answer = _post(server, body.encode().ljust(MB))
    assert answer.json()["result"]["text"] == "a, [b]"
