"""Usage of keys: every door is metered alike."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from bitinglip.errors import QueueFull
from tests.support.api_server import Served, serve
from tests.support.http_client import CHAT, MESSAGES, NATIVE, PROMPT, error_of
from tests.support.metered_server import (
    IMAGE,
    PIXELS,
    TIERS,
    USAGE,
    key_id,
    new_client,
    play,
    total,
    usage,
)
from tests.support.wait import eventually
from tests.support.websocket_client import heard, open_watch

pytestmark = pytest.mark.usefixtures("away_from_midnight")


@pytest.fixture(scope="module")
def metered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("metered"), play, limits={"tiers": TIERS}) as served:
        yield served


@pytest.fixture
def admin(metered: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=metered.url, headers=metered.headers("admin"), timeout=60) as client:
        yield client
    metered.wait_idle()


@pytest.fixture
def client(admin: httpx.Client) -> Iterator[httpx.Client]:
    with new_client(admin) as client:
        yield client


def test_usage_sums_are_what_clients_saw_on_every_surface(
    metered: Served, client: httpx.Client
) -> None:
    seen: Counter[str] = Counter()

    def saw(used: dict[str, Any]) -> None:
        seen.update(requests=1, prompt=used["prompt_tokens"], sampled=used["completion_tokens"])

    saw(client.post(NATIVE, json=PROMPT).json()["usage"])
    saw(client.post(CHAT, json=MESSAGES).json()["usage"])
    saw(client.post("/v1/completions", json={"model": "org/deep", "prompt": "x"}).json()["usage"])
    whole = client.post(NATIVE, json={**PROMPT, "stream": True}).text
    saw({"prompt_tokens": 1, "completion_tokens": 2})
    assert '"total_tokens":3' in whole
    streamed = {**MESSAGES, "stream": True, "stream_options": {"include_usage": True}}
    assert '"total_tokens":3' in client.post(CHAT, json=streamed).text
    saw({"prompt_tokens": 1, "completion_tokens": 2})
    task = client.post(NATIVE, json={**PROMPT, "async": True}).json()["task_id"]
    with open_watch(metered.url, task, **{"X-API-Key": client.headers["x-api-key"]}) as socket:
        messages, _ = heard(socket)
    saw(messages[-1][1]["usage"])
    assert client.get(f"/api/v1/tasks/{task}").json()["usage"]["total_tokens"] == 3
    found = total(client)
    assert found["key_name"] == "someone"
    assert (found["requests"], found["prompt_tokens"], found["completion_tokens"]) == (
        seen["requests"],
        seen["prompt"],
        seen["sampled"],
    )
    by_model = {row["model"]: row["requests"] for row in usage(client, group_by="model")}
    assert by_model == {"demo": 5, "org/deep": 1}


def test_usage_of_images_is_in_megapixels(client: httpx.Client) -> None:
    client.post("/api/v1/inference/image-generation", json={**IMAGE, "async": True})
    failed = {**IMAGE, "prompt": "!fail"}
    error_of(
        client.post("/api/v1/inference/image-generation", json=failed), 500, "INFERENCE_FAILED"
    )
    eventually(lambda: total(client)["requests"] == 1)
    assert total(client)["megapixels"] == PIXELS / 1_000_000
    assert total(client)["total_tokens"] == 0


def test_usage_of_a_client_that_left_is_what_was_made_for_it(
    metered: Served, client: httpx.Client
) -> None:
    body = {**PROMPT, "prompt": "!stall", "stream": True}
    with client.stream("POST", NATIVE, json=body) as stream:
        for line in stream.iter_lines():
            if " two" in line:
                break
    metered.wait_idle()
    found = total(client)
    assert (found["requests"], found["prompt_tokens"], found["completion_tokens"]) == (1, 1, 2)


def test_usage_of_a_cancelled_task_is_what_was_made_for_it(
    metered: Served, client: httpx.Client
) -> None:
    task = client.post(NATIVE, json={**PROMPT, "prompt": "!stall", "async": True}).json()["task_id"]
    with open_watch(metered.url, task, **{"X-API-Key": client.headers["x-api-key"]}) as socket:
        while '" two"' not in str(socket.recv(timeout=60)):
            pass
        shown = client.delete(f"/api/v1/tasks/{task}").json()["usage"]
    metered.wait_idle()
    assert (total(client)["requests"], total(client)["total_tokens"]) == (1, 3)
    assert (shown["prompt_tokens"], shown["completion_tokens"]) == (1, 2)


def test_usage_of_a_server_error_is_zero(
    client: httpx.Client, metered: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashed = {**PROMPT, "prompt": "!crash"}
    assert client.post(NATIVE, json=crashed).status_code == 502
    assert client.post(NATIVE, json={"prompt": 1}).status_code == 400
    assert total(client)["requests"] == 0
    refused = client.post(NATIVE, json={**PROMPT, "prompt": "!refuse"})
    assert refused.status_code == 400
    assert total(client) | {"requests": 1} == total(client)
    cut = client.post(NATIVE, json={**crashed, "stream": True})
    assert "WORKER_CRASHED" in cut.text
    # What was streamed before is charged, and is no request.
    assert (total(client)["requests"], total(client)["total_tokens"]) == (1, 3)

    def full(*_: object, **__: object) -> None:
        raise QueueFull()

    monkeypatch.setattr(metered.services.dispatcher, "admit", full)
    assert client.post(NATIVE, json=PROMPT).status_code == 503
    assert total(client)["requests"] == 1


def test_usage_is_shown_to_its_key_and_to_admins(admin: httpx.Client, client: httpx.Client) -> None:
    client.post(NATIVE, json=PROMPT)
    own = key_id(client)
    today = datetime.now(UTC).date()
    (row,) = usage(client)
    assert row == {
        "day": row["day"],
        "key_id": own,
        "key_name": "someone",
        "model": "demo",
        "requests": 1,
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "total_tokens": 3,
        "megapixels": 0.0,
        "audio_seconds": 0.0,
        "gpu_seconds": 0.0,
    }
    assert abs(datetime.fromisoformat(row["day"]).date() - today) <= timedelta(days=1)
    assert usage(admin, key_id=own) == [row]
    assert usage(admin, key_id=own, model="org/deep") == []
    days = {"from": str(today - timedelta(days=2)), "to": str(today + timedelta(days=1))}
    assert usage(client, **days) == [row]
    assert usage(client, to=str(today - timedelta(days=2))) == []
    assert own in {each["key_id"] for each in usage(admin, group_by="key", limit="1000")}
    (month,) = usage(client, group_by="month")
    assert (month["month"], month["requests"]) == (row["day"][:7], 1)
    first = admin.get(USAGE, params={"group_by": "key", "limit": 1}).json()
    assert (len(first["data"]), first["limit"], first["offset"]) == (1, 1, 0)
    assert first["total"] >= 2
    error_of(client.get(USAGE, params={"key_id": "other"}), 403, "INSUFFICIENT_SCOPE")
    for name, value in (
        ("group_by", "day,month"),
        ("group_by", "key,key"),
        ("group_by", ""),
        ("from", "yesterday"),
        ("to", "20261127"),
        ("limit", "1001"),
    ):
        wrong = error_of(client.get(USAGE, params={name: value}), 400, "INVALID_REQUEST")
        assert wrong["param"] == name
    error_of(client.get(USAGE, params={"since": "x"}), 400, "UNSUPPORTED_PARAMETER")
