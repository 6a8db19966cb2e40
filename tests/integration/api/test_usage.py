"""Usage and quotas of keys: every door is metered alike, and refuses alike."""

import asyncio
import itertools
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from bitinglip.errors import QueueFull
from tests.support.api_server import UNLIMITED, Served, echo, serve
from tests.support.http_client import CHAT, MESSAGES, NATIVE, PROMPT, error_of
from tests.support.wait import eventually
from tests.support.websocket_client import heard, open_watch
from workers import protocol

KEYS, USAGE, LIMITS = "/api/v1/keys", "/api/v1/usage", "/api/v1/limits"
IMAGE = {"model": "painter", "prompt": "x", "width": 64, "height": 128, "steps": 2, "n": 2}
PIXELS = 2 * 64 * 128
TIERS: dict[str, Any] = {
    "free": UNLIMITED,
    "pro": {**UNLIMITED, "daily": {"requests": 10}, "monthly": {"tokens": 1_000_000}},
}


async def play(job: protocol.Job) -> AsyncIterator[protocol.JobEvent]:
    """Answer texts as ``echo`` does, and images at once; both tell what they did when cancelled."""
    if isinstance(job, protocol.ImageJob):
        if job.prompt == "!fail":
            yield protocol.Failed(id=job.id, code="INFERENCE_FAILED", message="it failed")
            return
        made = [
            protocol.ImageFile(width=job.width, height=job.height, seed=seed, format="png", bytes=1)
            for seed in job.seeds
        ]
        yield protocol.ImageDone(id=job.id, images=tuple(made), steps=job.steps, scheduler="x")
        return
    async for event in echo(job):
        yield event


@pytest.fixture(scope="module")
def metered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("metered"), play, limits={"tiers": TIERS}) as served:
        yield served


@pytest.fixture
def admin(metered: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=metered.url, headers=metered.headers("admin"), timeout=20) as client:
        yield client
    metered.wait_idle()


def new_client(admin: httpx.Client, **fields: Any) -> httpx.Client:
    """Return a client with a key of its own."""
    body = {"name": "someone", "scopes": ["inference:text", "inference:image"], **fields}
    made = admin.post(KEYS, json=body)
    assert made.status_code == 201, made.text
    headers = {"X-API-Key": made.json()["key"]}
    return httpx.Client(base_url=admin.base_url, headers=headers, timeout=60)


@pytest.fixture
def client(admin: httpx.Client) -> Iterator[httpx.Client]:
    with new_client(admin) as client:
        yield client


def key_id(client: httpx.Client) -> str:
    return str(client.get(LIMITS).json()["key_id"])


def usage(client: httpx.Client, **query: str) -> list[dict[str, Any]]:
    answer = client.get(USAGE, params=query)
    assert answer.status_code == 200, answer.text
    rows: list[dict[str, Any]] = answer.json()["data"]
    return rows


def total(client: httpx.Client) -> dict[str, Any]:
    """Return all that a client's key has used."""
    rows = usage(client, group_by="key", key_id=key_id(client))
    return rows[0] if rows else {"requests": 0, "total_tokens": 0, "megapixels": 0.0}


def quota(client: httpx.Client, name: str) -> dict[str, Any]:
    quotas = client.get(LIMITS).json()["quotas"]
    found: dict[str, Any] = next(each for each in quotas if each["name"] == name)
    return found


def refusals(metered: Served, reason: str) -> float:
    """Return how many requests of tier free a limit has refused, as the metrics say."""
    exported = httpx.get(metered.url + "/metrics").text
    pattern = f'bitinglip_limit_refusals_total{{reason="{reason}",tier="free"}} (.*)'
    found = re.search(pattern, exported)
    return float(found[1]) if found else 0.0


# ---- metering ----------------------------------------------------------------------------------


def test_usage_sums_are_what_clients_saw_by_every_door(
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
        while '" two"' not in str(socket.recv(timeout=20)):
            pass
        client.delete(f"/api/v1/tasks/{task}")
    metered.wait_idle()
    assert (total(client)["requests"], total(client)["total_tokens"]) == (1, 3)


def test_usage_of_what_the_server_failed_is_none(
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

    monkeypatch.setattr(metered.services.dispatcher, "_admit", full)
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


# ---- quotas ------------------------------------------------------------------------------------


def test_quota_admits_exactly_its_requests_of_200_at_once(
    metered: Served, admin: httpx.Client
) -> None:
    async def rush(headers: httpx.Headers) -> Counter[int]:
        async with httpx.AsyncClient(base_url=metered.url, headers=headers, timeout=60) as many:
            doors = itertools.cycle(
                [(NATIVE, PROMPT), (CHAT, MESSAGES), (NATIVE, {**PROMPT, "stream": True})]
            )
            asked = (many.post(path, json=body) for path, body in itertools.islice(doors, 200))
            return Counter(answer.status_code for answer in await asyncio.gather(*asked))

    with new_client(admin, tier="pro") as client:
        assert asyncio.run(rush(client.headers)) == {200: 10, 429: 190}
        assert total(client)["requests"] == 10
        error_of(client.post(NATIVE, json={**PROMPT, "async": True}), 429, "QUOTA_EXCEEDED")


def test_quota_of_tokens_is_overrun_by_one_request_at_most(
    metered: Served, admin: httpx.Client
) -> None:
    async def rush(headers: httpx.Headers) -> Counter[int]:
        async with httpx.AsyncClient(base_url=metered.url, headers=headers, timeout=60) as many:
            body = {**PROMPT, "max_tokens": 2}
            answers = await asyncio.gather(*(many.post(NATIVE, json=body) for _ in range(100)))
            return Counter(answer.status_code for answer in answers)

    with new_client(admin, quotas={"daily": {"tokens": 50}}) as client:
        while (outcome := asyncio.run(rush(client.headers)))[200]:
            assert outcome[200] + outcome[429] == 100
        assert 50 <= total(client)["total_tokens"] < 50 + 3
        assert quota(client, "daily.tokens")["reserved"] == 0


def test_quota_refuses_alike_at_every_door(metered: Served, admin: httpx.Client) -> None:
    before = refusals(metered, "daily.tokens")
    with new_client(admin, quotas={"daily": {"tokens": 3}}) as client:
        assert client.post(NATIVE, json=PROMPT).status_code == 200
        midnight = (datetime.now(UTC) + timedelta(days=1)).date().isoformat()
        for path, body in (
            (NATIVE, PROMPT),
            (NATIVE, {**PROMPT, "stream": True}),
            (NATIVE, {**PROMPT, "async": True}),
            (CHAT, MESSAGES),
            ("/v1/completions", PROMPT),
        ):
            refused = client.post(path, json=body)
            error = error_of(refused, 429, "QUOTA_EXCEEDED")
            assert error["type"] == "rate_limit_error"
            assert error["details"] == {
                "quota": "daily.tokens",
                "limit": 3,
                "used": 3,
                "reserved": 0,
                "resets_at": f"{midnight}T00:00:00Z",
            }
            assert refused.headers["x-should-retry"] == "false"
            assert 1 <= int(refused.headers["retry-after"]) <= 86_400
            assert "ratelimit" not in refused.headers
        answer = client.post("/api/v1/inference/image-generation", json={**IMAGE, "async": True})
        assert answer.status_code == 202  # another unit
    assert refusals(metered, "daily.tokens") == before + 5


def test_quota_refusal_charges_nothing_of_the_rates(metered: Served, admin: httpx.Client) -> None:
    with new_client(admin, tier="enterprise", quotas={"daily": {"tokens": 100}}) as client:

        def left() -> int:
            answer = client.get(LIMITS).json()
            return int(
                next(each for each in answer["rates"] if each["name"] == "hour")["remaining"]
            )

        with client.stream("POST", NATIVE, json={**PROMPT, "prompt": "!stall", "stream": True}):
            before = left()
            for _ in range(5):  # the first reserves all: the body tells that it is too much
                error_of(client.post(NATIVE, json=PROMPT), 429, "QUOTA_EXCEEDED")
            assert left() >= before
    metered.wait_idle()
    assert metered.services.admission.in_flight == 0


def test_quota_reserved_for_a_request_that_is_refused_later_comes_back(
    admin: httpx.Client,
) -> None:
    with new_client(admin, quotas={"daily": {"requests": 3}, "monthly": {"tokens": 900}}) as client:
        for body, status in (
            ({**PROMPT, "prompt": "!crash"}, 502),
            ({**PROMPT, "model": "nobody"}, 404),
            ({**PROMPT, "max_tokens": 0}, 400),
            ({**PROMPT, "prompt": "!wait", "timeout": 0.05}, 504),
        ):
            assert client.post(NATIVE, json=body).status_code == status
        eventually(lambda: quota(client, "daily.requests")["reserved"] == 0)
        shown = quota(client, "daily.requests")
        assert (shown["used"], shown["remaining"]) == (1, 2)  # that which had all its time
        assert quota(client, "monthly.tokens")["used"] == 0


def test_quota_of_a_key_narrows_its_tier_and_outlives_a_rotation(admin: httpx.Client) -> None:
    with new_client(admin, tier="pro", quotas={"daily": {"requests": 2, "tokens": 1000}}) as client:
        own = key_id(client)
        assert admin.get(f"{KEYS}/{own}").json()["quotas"] == {
            "daily": {"requests": 2, "tokens": 1000}
        }
        names = {each["name"]: each["limit"] for each in client.get(LIMITS).json()["quotas"]}
        assert names == {"daily.requests": 2, "daily.tokens": 1000, "monthly.tokens": 1_000_000}
        for _ in range(2):
            assert client.post(NATIVE, json=PROMPT).status_code == 200
        error_of(client.post(NATIVE, json=PROMPT), 429, "QUOTA_EXCEEDED")
        renewed = admin.post(f"{KEYS}/{own}/rotate", json={}).json()["key"]
        again = client.post(NATIVE, json=PROMPT, headers={"X-API-Key": renewed})
        error_of(again, 429, "QUOTA_EXCEEDED")
        token = client.post("/api/v1/auth/token", json={}).json()["access_token"]
        by_token = httpx.post(
            f"{client.base_url}{NATIVE}",
            json=PROMPT,
            headers={"authorization": f"Bearer {token}"},
        )
        error_of(by_token, 429, "QUOTA_EXCEEDED")
        admin.patch(f"{KEYS}/{own}", json={"quotas": {"daily": {"requests": 3}}})
        assert client.post(NATIVE, json=PROMPT).status_code == 200
        error_of(client.post(NATIVE, json=PROMPT), 429, "QUOTA_EXCEEDED")
        admin.patch(f"{KEYS}/{own}", json={"quotas": None})
        assert admin.get(f"{KEYS}/{own}").json()["quotas"] is None
        assert client.post(NATIVE, json=PROMPT).status_code == 200


def test_quota_of_the_operator_is_none(admin: httpx.Client) -> None:
    assert admin.get(LIMITS).json()["quotas"] == []


def test_quota_is_minted_within_the_own_one_only(admin: httpx.Client) -> None:
    body = {"scopes": ["admin"], "tier": "pro", "quotas": {"daily": {"tokens": 50}}}
    with new_client(admin, **body) as minter:
        inherited = minter.post(KEYS, json={"name": "a"}).json()
        assert inherited["quotas"] == {"daily": {"tokens": 50}}
        narrower = {"name": "b", "quotas": {"daily": {"tokens": 5}, "monthly": {"requests": 1}}}
        made = minter.post(KEYS, json=narrower)
        assert made.status_code == 201
        for beyond in ({"daily": {"tokens": 51}}, {"daily": {"requests": 1}}, {}):
            refused = minter.post(KEYS, json={"name": "c", "quotas": beyond})
            assert error_of(refused, 403, "INSUFFICIENT_SCOPE")["param"] == "quotas"
        path = f"{KEYS}/{made.json()['id']}"
        for lifted in (None, {"daily": {"tokens": 60}}):
            error_of(minter.patch(path, json={"quotas": lifted}), 403, "INSUFFICIENT_SCOPE")
        free_key = admin.post(KEYS, json={"name": "d"}).json()["id"]
        error_of(minter.patch(f"{KEYS}/{free_key}", json={}), 403, "INSUFFICIENT_SCOPE")


def test_refusals_by_a_limit_of_no_known_name_have_one_label(metered: Served) -> None:
    metered.services.refusals.count("made-up", "free")
    assert (refusals(metered, "_other"), refusals(metered, "made-up")) == (1, 0)


def test_quota_costs_a_request_a_few_microseconds(metered: Served, admin: httpx.Client) -> None:
    """A generous bound: it would break if charges met a lock, a disk or a list of all keys."""
    with new_client(admin, quotas={"daily": {"tokens": 10**9}}) as client:
        meter, own = metered.services.meter, key_id(client)
    began = time.perf_counter()
    for _ in range(2000):
        meter.exhausted(own, (0, 1))
        reservation = meter.reserve(own, "m", lambda: (1, 500, 0, 0, 0))
        meter.settle(reservation, type(reservation.used)(1, 10, 10))
    assert (time.perf_counter() - began) / 2000 < 0.001
