"""The response cache over real sockets: what is answered from it, what is not, how it is run."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.support.api_server import Served, serve
from tests.support.cache_rig import (
    GREEDY,
    WAIT_SECONDS,
    Engine,
    ask,
    new_key,
    outcome,
    text_of,
)
from tests.support.http_client import CHAT, NATIVE, error_of
from tests.support.model_folders import llama
from tests.support.raw_http import asked
from tests.support.sse import events_of
from tests.support.wait import eventually

IMAGES = "/api/v1/inference/image-generation"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> Iterator[Served]:
    hourly = {"requests_per_hour": 2, "requests_per_minute": None}
    tiers = {"free": {"priority": 0}, "enterprise": hourly}
    with serve(
        tmp_path_factory.mktemp("cache"), engine, cache={"responses": True}, limits={"tiers": tiers}
    ) as served:
        yield served


@pytest.fixture(scope="module")
def sharing(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> Iterator[Served]:
    """Provide a server whose keys share their answers."""
    with serve(
        tmp_path_factory.mktemp("shared"), engine, cache={"responses": True, "scope": "all"}
    ) as served:
        yield served


@pytest.fixture(autouse=True)
def _gate(served: Served, engine: Engine) -> Iterator[None]:
    engine.gate.clear()
    yield
    engine.gate.set()
    served.wait_idle()
    assert not served.services.cache._flights


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    headers = served.headers("inference:text")
    with httpx.Client(base_url=served.url, headers=headers, timeout=WAIT_SECONDS) as client:
        yield client


@pytest.fixture
def admin(served: Served) -> Iterator[httpx.Client]:
    headers = served.headers("admin")
    with httpx.Client(base_url=served.url, headers=headers, timeout=WAIT_SECONDS) as admin:
        yield admin


# ---- what is answered from the cache ---------------------------------------------------------


def test_cache_answers_a_repeat_with_ids_of_its_own(
    served: Served, client: httpx.Client, engine: Engine
) -> None:
    first = client.post(NATIVE, json=ask("repeat"))
    again = client.post(NATIVE, json=ask("repeat", priority="high", timeout=9))
    assert (outcome(first), outcome(again)) == ("MISS", "HIT")
    assert engine.runs["repeat"] == 1
    one, two = first.json(), again.json()
    assert one["result"] == two["result"]
    assert one["task_id"] != two["task_id"]
    assert two["created_at"] >= one["completed_at"]
    assert (two["status"], two["worker_id"], two["usage"]) == ("completed", None, one["usage"])
    found = client.get(f"/api/v1/tasks/{two['task_id']}").json()
    assert found["result"] == one["result"]
    assert not {name for name in again.headers if "cache" in name} - {"x-cache", "cache-control"}
    assert again.headers["cache-control"] == "private, no-store"
    assert served.in_flight == 0


@pytest.mark.parametrize("streams_first", [True, False])
def test_cache_serves_streams_and_bodies_of_both_surfaces(
    client: httpx.Client, engine: Engine, streams_first: bool
) -> None:
    prompt = f"surfaces {streams_first}"
    messages = [{"role": "user", "content": prompt}]
    chat = {**GREEDY, "messages": messages}
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    asked = [(CHAT, chat), (CHAT, {**chat, **usage}), (NATIVE, chat)]
    asked.append((NATIVE, {**chat, "stream": True}))
    if streams_first:
        asked.reverse()
    answers = [client.post(path, json=body) for path, body in asked]
    # A surface has its own: on OpenAI's max_tokens is cut to what the context leaves.
    assert [outcome(answer) for answer in answers] == ["MISS", "HIT", "MISS", "HIT"]
    if streams_first:
        answers.reverse()
    body, chunks, native, events = answers
    text = body.json()["choices"][0]["message"]["content"]
    parts = [data for _, data in events_of(chunks.text)]
    assert parts[-1] == "[DONE]"
    said = [
        choice["delta"].get("content") or "" for each in parts[:-1] for choice in each["choices"]
    ]
    assert "".join(said) == text
    assert len({body.json()["id"], parts[0]["id"], native.json()["task_id"]}) == 3
    names = [name for name, _ in events_of(events.text) if name not in ("queued", "loading")]
    tokens = ["token", "token"] if streams_first else ["token"]
    assert names == ["started", *tokens, "completed"]
    pieces = [data["text"] for name, data in events_of(events.text) if name == "token"]
    assert "".join(pieces) == text_of(native)
    details = [each["usage"]["prompt_tokens_details"] for each in (body.json(), parts[-2])]
    fresh = {"cached_tokens": 0}
    kept = {"cached_tokens": 3}
    assert details == ([kept, fresh] if streams_first else [fresh, kept])
    assert engine.runs[prompt] == 2


def test_cache_passes_by_what_may_differ(client: httpx.Client, engine: Engine) -> None:
    for _ in range(2):
        assert outcome(client.post(NATIVE, json=ask("sampled", temperature=0.7))) == "BYPASS"
    seeded = [client.post(NATIVE, json=ask("seeded", temperature=1, seed=7)) for _ in range(2)]
    assert [outcome(each) for each in seeded] == ["MISS", "HIT"]
    assert outcome(client.post(NATIVE, json=ask("seeded", temperature=1, seed=8))) == "MISS"
    assert engine.runs["sampled"] == 2


def test_cache_obeys_the_request_s_cache_control(client: httpx.Client, engine: Engine) -> None:
    def get(control: str) -> tuple[str, str]:
        answer = client.post(NATIVE, json=ask("control"), headers={"cache-control": control})
        return outcome(answer), text_of(answer)

    assert get("no-store")[0] == "BYPASS"
    first = get("max-age=600")
    assert first[0] == "MISS"
    assert get("max-age=600") == ("HIT", first[1])
    assert get("max-age=0")[0] == "MISS"
    refreshed = get("no-cache")
    assert refreshed[0] == "MISS"
    assert get("max-age=600") == ("HIT", refreshed[1])
    assert engine.runs["control"] == 4


def test_cache_answers_images_without_their_files(served: Served) -> None:
    asked = {"model": "painter", "prompt": "fox", "width": 64, "height": 64, "steps": 4}
    headers = served.headers("inference:image")
    with httpx.Client(base_url=served.url, headers=headers, timeout=WAIT_SECONDS) as client:

        def paint(**fields: Any) -> tuple[str, bytes]:
            answer = client.post(IMAGES, json={**asked, **fields})
            pictures = answer.json()["result"]["images"]
            return outcome(answer), base64.b64decode(pictures[0].get("b64", ""))

        kind, pixels = paint(seed=1)
        assert kind == "MISS"
        for path in served.services.files.folder.iterdir():
            path.unlink()
        assert paint(seed=1) == ("HIT", pixels)
        assert paint(seed=2)[0] == "MISS"
        assert [paint()[0], paint()[0]] == ["BYPASS", "BYPASS"]
        assert paint(seed=1, output="url")[0] == "BYPASS"
        openai = {"model": "painter", "prompt": "fox", "size": "64x64", "steps": 4, "seed": 1}
        answer = client.post("/v1/images/generations", json=openai)
        assert outcome(answer) == "HIT"
        assert base64.b64decode(answer.json()["data"][0]["b64_json"]) == pixels
        # What the safety checker blackened is not kept.
        for _ in range(2):
            assert paint(seed=1, prompt="filtered")[0] == "MISS"
    assert not served.services.files._held


def test_cache_distinguishes_uploads_and_removes_them(served: Served) -> None:
    asked = {"model": "painter", "prompt": "edit", "width": 64, "height": 64, "seed": 1}
    headers = served.headers("inference:image")
    with httpx.Client(base_url=served.url, headers=headers, timeout=WAIT_SECONDS) as client:

        def edit(colour: str, **fields: str) -> str:
            image = base64.b64encode(picture(colour)).decode()
            return outcome(client.post(IMAGES, json={**asked, "image": image, **fields}))

        assert [edit("red"), edit("red"), edit("blue"), edit("red")] == ["MISS", "HIT"] * 2
        mask = base64.b64encode(picture("blue")).decode()
        assert [edit("red", mask=mask), edit("red", mask=mask)] == ["MISS", "HIT"]
    eventually(lambda: not list(served.services.uploads.folder.iterdir()))
    assert served.services.uploads.bytes == 0


def picture(colour: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(out, "png")
    return out.getvalue()


# ---- what is not -------------------------------------------------------------------------------


def test_cache_keeps_no_failed_refused_or_cut_answer(
    served: Served, client: httpx.Client, engine: Engine
) -> None:
    for stream in (False, True):
        for _ in range(2):
            answer = client.post(NATIVE, json=ask("!fail", stream=stream))
            assert (answer.status_code, answer.headers.get("x-cache")) in (
                (500, None),
                (200, "MISS"),
            )
    assert engine.runs["!fail"] == 4
    slow = ask("!gate cut", timeout=0.05)
    assert client.post(NATIVE, json=slow).status_code == 504
    with asked(served, NATIVE, ask("!gate cut")):
        eventually(lambda: served.in_flight == 1)
    served.wait_idle()
    with client.stream("POST", NATIVE, json=ask("!gate cut", stream=True)) as opened:
        assert next(opened.iter_lines())
    served.wait_idle()
    engine.gate.set()
    assert outcome(client.post(NATIVE, json=ask("!gate cut"))) == "MISS"
    assert outcome(client.post(NATIVE, json=ask("!gate cut"))) == "HIT"


def test_cache_is_not_replayed_past_limits_and_models(
    admin: httpx.Client, client: httpx.Client
) -> None:
    key_id, key = new_key(admin, tier="enterprise")
    answers = [client.post(NATIVE, json=ask("limits"), headers=key) for _ in range(2)]
    assert [outcome(answer) for answer in answers] == ["MISS", "HIT"]
    assert answers[1].headers["x-ratelimit-remaining-requests"] == "0"  # a hit counts
    refused = client.post(NATIVE, json=ask("limits"), headers=key)
    error_of(refused, 429, "RATE_LIMIT_EXCEEDED")
    assert "x-cache" not in refused.headers
    admin.patch(f"/api/v1/keys/{key_id}", json={"tier": "operator", "models": ["painter"]})
    denied = client.post(NATIVE, json=ask("limits"), headers=key)
    error_of(denied, 403, "MODEL_NOT_ALLOWED")
    admin.patch(f"/api/v1/keys/{key_id}", json={"models": None, "scopes": ["inference:image"]})
    denied = client.post(NATIVE, json=ask("limits"), headers=key)
    error_of(denied, 403, "INSUFFICIENT_SCOPE")
    admin.patch(f"/api/v1/keys/{key_id}", json={"scopes": ["inference:text"]})
    # What the key may do has changed: its cache starts empty.
    assert outcome(client.post(NATIVE, json=ask("limits"), headers=key)) == "MISS"
    admin.delete(f"/api/v1/keys/{key_id}")
    error_of(client.post(NATIVE, json=ask("limits"), headers=key), 401, "INVALID_API_KEY")


def test_cache_of_a_key_reveals_nothing_to_others(
    admin: httpx.Client, client: httpx.Client, engine: Engine
) -> None:
    own = text_of(client.post(NATIVE, json=ask("secret")))
    _, other = new_key(admin)
    disguise = {**other, "x-tenant": "me", "x-bitinglip-tenant": "me", "openai-organization": "me"}
    answer = client.post(NATIVE, json=ask("secret"), headers=disguise)
    assert (outcome(answer), engine.runs["secret"]) == ("MISS", 2)
    assert text_of(answer) != own
    assert text_of(client.post(NATIVE, json=ask("secret"))) == own


def test_cache_is_shared_by_keys_where_the_settings_say_so(sharing: Served) -> None:
    headers = sharing.headers("admin")
    with httpx.Client(base_url=sharing.url, headers=headers, timeout=WAIT_SECONDS) as admin:
        (_, one), (_, two) = new_key(admin), new_key(admin)
        _, narrow = new_key(admin, models=["painter"])
        answers = [admin.post(NATIVE, json=ask("shared"), headers=key) for key in (one, two)]
        assert [outcome(answer) for answer in answers] == ["MISS", "HIT"]
        assert text_of(answers[0]) == text_of(answers[1])
        task_id = answers[0].json()["task_id"]
        assert admin.get(f"/api/v1/tasks/{task_id}", headers=two).status_code == 404
        denied = admin.post(NATIVE, json=ask("shared"), headers=narrow)
        error_of(denied, 403, "MODEL_NOT_ALLOWED")


def test_cache_writes_nothing_to_the_disk(served: Served, client: httpx.Client) -> None:
    canary = "canary-4711-of-the-cache"
    assert [outcome(client.post(NATIVE, json=ask(canary))) for _ in range(2)] == ["MISS", "HIT"]
    files = [path for path in served.home.root.rglob("*") if path.is_file()]
    assert served.home.secret_key in files
    assert not [path for path in files if canary.encode() in path.read_bytes()]


# ---- how it is operated -----------------------------------------------------------------------


def test_cache_is_cleared_by_its_route_and_with_its_model(
    served: Served, admin: httpx.Client, client: httpx.Client, tmp_path: Path
) -> None:
    def get(model: str) -> str:
        return outcome(client.post(NATIVE, json=ask("cleared", model=model)))

    assert [get("demo"), get("demo"), get("org/deep")] == ["MISS", "HIT", "MISS"]
    denied = client.delete("/api/v1/cache")
    error_of(denied, 403, "INSUFFICIENT_SCOPE")
    _, narrow = new_key(admin, scopes=["cluster:write"], models=["org/*"])
    assert client.delete("/api/v1/cache", headers=narrow).status_code == 204
    assert [get("demo"), get("org/deep")] == ["HIT", "MISS"]
    assert admin.delete("/api/v1/cache").status_code == 204
    assert [get("demo"), get("org/deep"), get("org/deep")] == ["MISS", "MISS", "HIT"]
    assert admin.delete("/api/v1/models/org/deep").status_code == 204
    assert len(served.services.cache.entries) == 1
    store = served.services.store
    store.import_folder(llama(tmp_path / "new", hidden_act="gelu"), "org/deep")
    assert [get("org/deep"), get("org/deep")] == ["MISS", "HIT"]


def test_cache_is_in_health_and_metrics(client: httpx.Client, admin: httpx.Client) -> None:
    def counted() -> dict[str, float]:
        lines = admin.get("/metrics").text.splitlines()
        found = [line.split() for line in lines if line.startswith("bitinglip_cache_")]
        return {name: float(value) for name, value in found}

    before = counted()
    for _ in range(3):
        client.post(NATIVE, json=ask("counted"))
    after = counted()
    assert after["bitinglip_cache_hits_total"] == before["bitinglip_cache_hits_total"] + 2
    assert after["bitinglip_cache_misses_total"] == before["bitinglip_cache_misses_total"] + 1
    size, entries = after["bitinglip_cache_bytes"], after["bitinglip_cache_entries"]
    assert size > 0
    check = client.get("/health").json()["checks"]["cache"]
    expected = f"{entries:.0f} answers, {size:.0f} of 268435456 bytes"
    assert (check["ok"], check["detail"]) == (True, expected)


def test_cache_charges_a_hit_as_a_request_and_nothing_else(
    admin: httpx.Client, client: httpx.Client
) -> None:
    key_id, key = new_key(admin, quotas={"daily": {"requests": 3}})
    answers = [client.post(NATIVE, json=ask("quota"), headers=key) for _ in range(4)]
    assert [each.headers.get("x-cache") for each in answers] == ["MISS", "HIT", "HIT", None]
    error_of(answers[-1], 429, "QUOTA_EXCEEDED")
    rows = admin.get("/api/v1/usage", params={"key_id": key_id}).json()["data"]
    assert sum(row["requests"] for row in rows) == 3
    assert sum(row["total_tokens"] for row in rows) == 5  # those that were computed, once
