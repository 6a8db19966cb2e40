"""Text over HTTP, from the client's side of a real server."""

import asyncio
import json
import socket
from collections.abc import Iterator
from secrets import token_hex
from typing import Any

import httpx
import pytest

from tests.support.confinement import check_whole
from tests.support.http_client import NATIVE
from tests.support.server import Server, running_server
from tests.support.sse import events_of
from tests.support.wait import eventually


def chat(n: int) -> dict[str, Any]:
    """Chats of mixed lengths and settings, all greedy, so that each has one right answer."""
    return {
        "model": "demo-text",
        "messages": [
            {"role": "system", "content": "Answer in the style of number " + str(n)},
            {"role": "user", "content": f"question {n}: " + "tell me more " * (n % 9)},
        ],
        "max_tokens": 4 + (n * 7) % 40,
        "temperature": 0,
        "seed": n,
    }


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    parsed: dict[str, Any] = answer.json()
    return parsed


def test_batch_of_forty_mixed_chats_gives_what_each_is_alone(server: Server) -> None:
    async def run() -> None:
        async with server.async_client() as client:
            bodies = [chat(n) for n in range(40)]
            together = await asyncio.gather(*(ask(client, body) for body in bodies))
            for body, found in zip(bodies, together, strict=True):
                alone = await ask(client, body)
                assert found["choices"] == alone["choices"]
                for each in (found, alone):  # prefixes are in the cache or not, by chance
                    del each["usage"]["prompt_tokens_details"]
                assert found["usage"] == alone["usage"]
                assert found["usage"]["completion_tokens"] <= body["max_tokens"]

    asyncio.run(run())


def test_stream_of_text_tells_its_way_and_ends_once(server: Server) -> None:
    with server.client() as client:
        body = {"model": "demo-echo", "prompt": "one two three", "max_tokens": 5, "stream": True}
        answer = client.post(NATIVE, json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = events_of(answer.text)
    names = [name for name, _ in events if name not in ("queued", "loading")]
    assert names == ["started", *["token"] * 5, "completed"]
    tokens = [data for name, data in events if name == "token"]
    assert [token["index"] for token in tokens] == [0, 1, 2, 3, 4]
    final = events[-1][1]
    assert final["status"] == "completed"
    assert final["result"]["text"] == "".join(token["text"] for token in tokens)
    assert final["usage"]["completion_tokens"] == 5


def test_stream_and_plain_answer_are_the_same_text(server: Server) -> None:
    body = {"model": "demo-text", "prompt": "Once upon a time", "max_tokens": 20, "temperature": 0}
    with server.client() as client:
        plain = client.post(NATIVE, json=body).json()
        streamed = events_of(client.post(NATIVE, json={**body, "stream": True}).text)
    assert streamed[-1][1]["result"] == plain["result"]
    text = "".join(data["text"] for name, data in streamed if name == "token")
    assert text == plain["result"]["text"]


def test_seed_gives_the_same_text_beside_others(server: Server) -> None:
    body = {"model": "demo-text", "prompt": "seeded", "max_tokens": 24, "temperature": 1, "seed": 7}

    async def run() -> None:
        async with server.async_client() as client:
            alone = (await client.post(NATIVE, json=body)).json()["result"]["text"]
            others = [{**body, "seed": n, "prompt": f"other {n}"} for n in range(10)]
            answers = await asyncio.gather(
                *(client.post(NATIVE, json=one) for one in [*others, body, body])
            )
            texts = [answer.json()["result"]["text"] for answer in answers]
            assert texts[-1] == texts[-2] == alone
            assert len(set(texts)) > 2

    asyncio.run(run())


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"model": "demo-text", "prompt": "x", "wings": 2}, 400, "UNSUPPORTED_PARAMETER", "wings"),
        ({"model": "nobody", "prompt": "x"}, 404, "INVALID_MODEL", "model"),
        (
            {"model": "demo-text", "prompt": "x", "max_tokens": 100_000},
            400,
            "CONTEXT_LENGTH_EXCEEDED",
            "max_tokens",
        ),
        (
            {"model": "demo-text", "prompt": "long " * 9000},
            400,
            "CONTEXT_LENGTH_EXCEEDED",
            "prompt",
        ),
        (
            {"model": "demo-text", "prompt": "x", "temperature": -1},
            400,
            "INVALID_REQUEST",
            "temperature",
        ),
        ({"model": "demo-text"}, 400, "INVALID_REQUEST", "prompt"),
        (
            {"model": "demo-echo", "prompt": "x", "logprobs": 1},
            400,
            "UNSUPPORTED_PARAMETER",
            "logprobs",
        ),
        (b'{"model": "demo-text", "prompt"', 400, "INVALID_REQUEST", None),
        (
            b'{"model": "demo-text", "prompt": "x", "temperature": NaN}',
            400,
            "INVALID_REQUEST",
            "temperature",
        ),
        (b"[" * 100_000, 400, "INVALID_REQUEST", None),
    ],
)
def test_requests_that_are_wrong_get_the_error_of_the_contract_without_their_text(
    server: Server, body: Any, status: int, code: str, param: str | None
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with server.client() as client:
        answer = client.post(NATIVE, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["code"] == code
    assert error["param"] == param
    assert error["request_id"] == answer.headers["x-request-id"]
    assert set(error) == {"code", "message", "type", "param", "details", "request_id", "timestamp"}
    assert "long long" not in answer.text
    if code == "INVALID_MODEL":
        assert error["details"]["available_models"] == [
            "demo-echo",
            "demo-embedding",
            "demo-image",
            "demo-speech",
            "demo-text",
        ]


def test_body_over_the_limit_is_refused_before_it_is_read(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as sock:
        sock.sendall(
            b"POST /api/v1/inference/text-generation HTTP/1.1\r\nHost: localhost\r\n"
            b"Authorization: Bearer " + server.key.encode() + b"\r\n"
            b"Content-Type: application/json\r\nContent-Length: 104857600\r\n\r\n{"
        )
        answer = b""
        while chunk := sock.recv(65536):
            answer += chunk
    assert b" 413 " in answer.split(b"\r\n")[0]
    assert b"PAYLOAD_TOO_LARGE" in answer


@pytest.mark.parametrize("key", ["?", "nonsense", "blk_live_" + "A" * 61, "' OR 1=1--", "é" * 20])
def test_key_that_is_wrong_is_a_401_and_never_logged(server: Server, key: str) -> None:
    headers = {b"Authorization": f"Bearer {key}".encode()}
    with server.client(headers=headers) as client:
        answer = client.post(NATIVE, json={"model": "demo-echo", "prompt": "x"})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    if len(key) > 5:
        assert key not in server.log.read_text()


def test_log_holds_neither_a_key_nor_a_prompt(server: Server) -> None:
    with server.client() as client:
        for body in ({"model": "demo-echo", "prompt": "canary-words"}, {"prompt": "canary-words"}):
            client.post(NATIVE, json=body)
        client.get(f"/api/v1/models?key={server.key}")
    log = server.log.read_text()
    assert "canary-words" not in log
    assert server.key not in log  # the first start shows it on a terminal only


def test_disconnect_of_the_client_cancels_its_request(server: Server) -> None:
    body = {"model": "demo-echo", "prompt": "!slow a b", "max_tokens": 1000, "stream": True}
    eventually(server.idle)  # after earlier tests
    with (
        server.client() as client,
        client.stream("POST", NATIVE, json=body) as answer,
    ):
        pieces = answer.iter_bytes()  # let go, it would close the connection
        next(pieces)
        assert server.status()["in_flight"] == 1
    eventually(server.idle)


def test_disconnect_without_a_stream_cancels_too(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({"model": "demo-echo", "prompt": "!slow a", "max_tokens": 1000}).encode()
    eventually(server.idle)
    with socket.create_connection((host, int(port)), timeout=60) as sock:
        sock.sendall(
            b"POST /api/v1/inference/text-generation HTTP/1.1\r\nHost: localhost\r\n"
            b"Authorization: Bearer " + server.key.encode() + b"\r\n"
            b"Content-Type: application/json\r\nContent-Length: "
            + str(len(body)).encode()
            + b"\r\n\r\n"
            + body
        )
        eventually(lambda: server.status()["in_flight"] == 1)
    eventually(server.idle)


def test_key_works_within_its_scopes_and_not_after_its_end(server: Server) -> None:
    with server.client() as admin:
        made = admin.post("/api/v1/keys", json={"name": "reader", "scopes": ["models:read"]})
        assert made.status_code == 201
        key = made.json()
        headers = {"X-API-Key": key["key"]}
        with server.client(headers=headers) as reader:
            assert reader.get("/api/v1/models").status_code == 200
            refused = reader.post(NATIVE, json={"model": "demo-echo", "prompt": "x"})
            assert refused.status_code == 403
            assert refused.json()["error"]["code"] == "INSUFFICIENT_SCOPE"
            assert admin.delete(f"/api/v1/keys/{key['id']}").status_code == 204
            assert reader.get("/api/v1/models").status_code == 401
    assert key["key"] not in server.log.read_text()


def test_prefix_reuse_is_told_in_usage_and_stays_within_a_key(server: Server) -> None:
    system = f"{token_hex(8)}: you answer in one word, and never speak of what was said before."
    body = {
        "model": "demo-text",
        "max_tokens": 4,
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": "Hello"}],
    }

    def cached(client: httpx.Client) -> int:
        usage = client.post("/v1/chat/completions", json=body, timeout=60).json()["usage"]
        assert usage["prompt_tokens"] > usage["prompt_tokens_details"]["cached_tokens"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    with server.client() as admin:
        made = admin.post("/api/v1/keys", json={"name": "other", "scopes": ["inference:text"]})
        assert cached(admin) == 0
        assert cached(admin) >= 16
        with server.client(headers={"X-API-Key": made.json()["key"]}) as other:
            assert cached(other) == 0
        counted = "bitinglip_cached_prompt_tokens_total"
        assert f'{counted}{{model="demo-text"}}' in admin.get("/metrics").text


def test_metrics_count_what_was_done(server: Server) -> None:
    def value(text: str, name: str) -> float:
        lines = [line for line in text.splitlines() if line.startswith(name)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    name = 'inference_requests_total{model="demo-echo"'
    with server.client() as client:
        before = value(client.get("/metrics").text, name)
        client.post(NATIVE, json={"model": "demo-echo", "prompt": "x", "max_tokens": 3})
        after = client.get("/metrics").text
        assert value(after, name) == before + 1
        # Those of earlier tests may take a moment to end.
        eventually(lambda: "bitinglip_in_flight_requests 0" in client.get("/metrics").text)


def test_health_answers_without_a_key(server: Server) -> None:
    """It tells of the moment: a worker that a test has killed may be on its way back."""

    def lacking() -> dict[str, Any]:
        checks = httpx.get(server.url + "/health").json()["checks"]
        return {name: check for name, check in checks.items() if not check["ok"]}

    eventually(lambda: not lacking())
    body = httpx.get(server.url + "/health").json()
    assert body["status"] == "healthy"
    assert set(body["checks"]) == {
        "database",
        "cache",
        "redis",
        "cluster_manager",
        "model_manager",
        "task_manager",
        "devices",
        "guard",
    }
    assert body["checks"]["guard"]["detail"].startswith("off")


def test_streams_of_two_hundred_clients_at_once(server: Server) -> None:
    body = {"model": "demo-echo", "prompt": "a b c d", "max_tokens": 50, "stream": True}

    async def one(client: httpx.AsyncClient) -> str:
        answer = await client.post(NATIVE, json=body)
        events = events_of(answer.text)
        assert events[-1][0] == "completed", events[-1]
        return str(events[-1][1]["result"]["text"])

    async def run() -> None:
        async with asyncio.timeout(60), server.async_client() as client:
            texts = await asyncio.gather(*(one(client) for _ in range(200)))
        assert set(texts) == {" ".join((["a", "b", "c", "d"] * 13)[:50])}

    asyncio.run(run())


@pytest.fixture(scope="module")
def changed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Provide a server whose text model has settings of its own."""
    settings = ("dtype=bfloat16", "max_context=99", "text.speculation=lookup", "quantization=int8")
    changed = [part for each in settings for part in ("--set", f"models.demo-text.{each}")]
    changed += ["--set", "models.demo-echo.quantization=int8"]
    changed += ["--set", "models.demo-text.text.prefix_ram_bytes=8000000"]
    home = tmp_path_factory.mktemp("changed") / "home"
    with running_server(home, *changed, forked_workers=True) as server:
        yield server


def test_model_that_is_loaded_says_what_it_really_runs_as(changed_server: Server) -> None:
    with changed_server.client() as client:
        before = client.get("/api/v1/models/demo-text").json()
        assert (before["dtype"], before["device"], before["max_context"]) == ("float32", None, 2048)
        assert client.post("/api/v1/models/demo-text/load").status_code == 200
        model = client.get("/api/v1/models/demo-text").json()
        refused = client.post("/api/v1/models/demo-echo/load")
        echo = client.get("/api/v1/models/demo-echo").json()
    assert (model["dtype"], model["device"], model["max_context"]) == ("bfloat16", "cpu", 99)
    offered = {each["format"]: each for each in before["quantizations"]}
    assert list(offered) == ["int8", "fp8", "llm_int8", "nf4"]
    assert offered["int8"]["lacks"] is None
    assert offered["nf4"]["needs_bytes"] < offered["int8"]["needs_bytes"]
    assert (before["quantization"], model["quantization"]) == (None, "int8")
    assert (refused.status_code, echo["quantizations"]) == (502, [])
    assert "only text models are quantised" in refused.json()["error"]["message"]
    assert "logprobs" in model["supported_parameters"]
    assert "logprobs" not in echo["supported_parameters"]


def test_speculation_by_setting_is_counted_by_model(changed_server: Server) -> None:
    """A text that says the same again and again has drafts that are right."""
    body = {"model": "demo-text", "prompt": "x", "max_tokens": 40, "logit_bias": {"300": 100}}
    with changed_server.client() as client:
        answer = client.post("/v1/completions", json=body, timeout=60).json()
        assert answer["usage"]["completion_tokens"] == 40
        counted = 'bitinglip_draft_tokens_total{model="demo-text",outcome="accepted"}'
        lines = client.get("/metrics").text.splitlines()
    (value,) = [float(line.split()[-1]) for line in lines if line.startswith(counted)]
    assert value > 20


def test_prefix_in_ram_outlives_the_worker_of_its_model(changed_server: Server) -> None:
    """The next worker finds what one has computed, for the same key."""
    text = "A conversation that goes on after its model has made room for another one."
    body = {"model": "demo-text", "prompt": text, "max_tokens": 4, "temperature": 0}

    def ask(client: httpx.Client) -> tuple[str, int]:
        answer = client.post("/v1/completions", json=body, timeout=60).json()
        return answer["choices"][0]["text"], answer["usage"]["prompt_tokens_details"][
            "cached_tokens"
        ]

    with changed_server.client() as client:
        made = client.post("/api/v1/keys", json={"name": "other", "scopes": ["inference:text"]})
        said, cached = ask(client)
        assert cached == 0
        client.post("/api/v1/models/demo-text/unload").raise_for_status()
        again, cached = ask(client)
        assert again == said
        assert cached >= 16
        with changed_server.client(headers={"X-API-Key": made.json()["key"]}) as other:
            assert ask(other) == (said, 0)


def test_confinement_of_a_text_worker_is_whole(server: Server) -> None:
    with server.client() as client:
        client.post("/api/v1/models/demo-text/load").raise_for_status()
    check_whole(server.worker("demo-text"))
