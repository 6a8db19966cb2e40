"""Limits of keys: every door takes the same steps, and gives back what it took."""

import asyncio
import random
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from bitinglip import api
from bitinglip.access.limits.policy import LimitClass
from bitinglip.access.scopes import Scope
from bitinglip.api.auth import declare_scope, declared_limits
from bitinglip.errors import QueueFull
from bitinglip.settings import Settings
from bitinglip.settings_loader import SettingsError
from tests.support.api_server import Served, serve
from tests.support.http_client import CHAT, MESSAGES, NATIVE, PROMPT, error_of
from tests.support.other_program import rows
from tests.support.wait import eventually
from tests.support.websocket_client import heard, open_watch, refusal

HOURLY = 10  #: earned back one in six minutes, so that no slow test sees another one
TIERS: dict[str, Any] = {
    # Of the highest priority: no load of the machine takes anything from these counts.
    "free": {"requests_per_hour": HOURLY, "priority": 3},
    "pro": {"requests_per_minute": 60_000, "requests_per_hour": None, "concurrent_requests": 2},
    "enterprise": {
        "requests_per_minute": 6000,
        "burst": 2,
        "requests_per_hour": None,
        "concurrent_requests": 1,
    },
}
WAITING = {**PROMPT, "prompt": "!stall", "stream": True}


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    limits = {
        "tiers": TIERS,
        "endpoints": {"/v1/completions": {"requests_per_hour": 1}},
        "failed_logins_per_minute": 5,
    }
    with serve(tmp_path_factory.mktemp("limited"), limits=limits) as served:
        yield served


@pytest.fixture
def admin(limited: Served) -> Iterator[httpx.Client]:
    headers = limited.headers("admin")
    with httpx.Client(base_url=limited.url, headers=headers, timeout=60) as client:
        yield client


def new_key(admin: httpx.Client, tier: str) -> dict[str, str]:
    """Make a key of this tier; return its header."""
    body = {"name": tier, "tier": tier, "scopes": ["inference:text", "models:read"]}
    return {"X-API-Key": admin.post("/api/v1/keys", json=body).json()["key"]}


@pytest.fixture
def client(limited: Served, admin: httpx.Client) -> Iterator[httpx.Client]:
    """Provide a client with a key of its own of tier free."""
    headers = new_key(admin, "free")
    with httpx.Client(base_url=limited.url, headers=headers, timeout=60) as client:
        yield client
    limited.wait_idle()
    eventually(lambda: limited.services.admission.in_flight == 0)


# ---- declarations ------------------------------------------------------------------------------


def test_limits_are_declared_by_every_route_that_is_not_public(limited: Served) -> None:
    for route in limited.app.routes:
        path = getattr(route, "path", "")
        assert (declared_limits(route) is None) == (path in api.PUBLIC), path


def test_limits_that_a_route_does_not_declare_stop_the_start() -> None:
    async def handler(_request: object) -> None: ...

    with pytest.raises(RuntimeError, match="declares no scope"):
        api.check_declared([Route("/new", handler)])
    declare_scope(handler, Scope.TEXT)
    with pytest.raises(RuntimeError, match="declares no class of limits"):
        api.check_declared([Route("/new", handler)])
    declare_scope(handler, Scope.TEXT, LimitClass.INFERENCE)
    api.check_declared([Route("/new", handler)])


def test_limits_of_a_route_that_is_not_there_stop_the_start() -> None:
    settings = Settings.model_validate({"limits": {"endpoints": {"/v1/compeltions": {}}}})
    with pytest.raises(SettingsError, match=r'endpoints\."/v1/compeltions": there is no'):
        api.mount(api.Application(docs_url=None, redoc_url=None), settings)


# ---- rates -------------------------------------------------------------------------------------


def test_rate_of_a_key_admits_exactly_the_limit_of_200_at_once(
    limited: Served, client: httpx.Client
) -> None:
    async def rush() -> Counter[int]:
        async with httpx.AsyncClient(
            base_url=limited.url, headers=client.headers, timeout=60
        ) as many:
            answers = await asyncio.gather(*(many.post(NATIVE, json=PROMPT) for _ in range(200)))
        return Counter(answer.status_code for answer in answers)

    assert asyncio.run(rush()) == {200: HOURLY, 429: 200 - HOURLY}


def test_rate_is_one_for_all_surfaces_and_refuses_with_the_same_headers(
    client: httpx.Client,
) -> None:
    left = []
    for number in range(HOURLY):
        path, body = ((NATIVE, PROMPT), (CHAT, MESSAGES))[number % 2]
        answer = client.post(path, json={**body, "stream": number % 3 == 0})
        assert answer.status_code == 200
        left.append(int(answer.headers["x-ratelimit-remaining-requests"]))
        assert answer.headers["x-ratelimit-limit-requests"] == str(HOURLY)
        assert f'"hour";r={left[-1]};t=' in answer.headers["ratelimit"]
        assert answer.headers["ratelimit-policy"] == '"hour";q=10;w=3600'
    assert left == [*range(HOURLY - 1, -1, -1)]
    for path, body in ((NATIVE, PROMPT), (CHAT, MESSAGES)):
        refused = client.post(path, json=body)
        error = error_of(refused, 429, "RATE_LIMIT_EXCEEDED")
        assert error["type"] == "rate_limit_error"
        assert error["details"]["violated_policies"] == ["hour"]
        wait_ms = int(refused.headers["retry-after-ms"])
        assert error["details"]["retry_after_ms"] == wait_ms
        seconds = int(refused.headers["retry-after"])
        assert seconds == -(-wait_ms // 1000) <= 360
        assert refused.headers["ratelimit"] == f'"hour";r=0;t={seconds}'
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert re.fullmatch(r"1h0m0s|5\dm\d+s", refused.headers["x-ratelimit-reset-requests"])
    assert client.get("/api/v1/models").status_code == 200  # another limit


def test_rate_under_a_burst_is_earned_back(limited: Served, admin: httpx.Client) -> None:
    headers = new_key(admin, "enterprise")
    with httpx.Client(base_url=limited.url, headers=headers, timeout=60) as client:
        answer = client.post(NATIVE, json=PROMPT)
        policy = '"minute";q=6000;w=60;bl-burst=2, "concurrent";q=1;qu="concurrent-requests"'
        assert answer.headers["ratelimit-policy"] == policy


def test_rate_of_a_route_narrows_it_alone(client: httpx.Client) -> None:
    body = {"model": "demo", "prompt": "hi"}
    assert client.post("/v1/completions", json=body).status_code == 200
    error = error_of(client.post("/v1/completions", json=body), 429, "RATE_LIMIT_EXCEEDED")
    assert error["details"]["violated_policies"] == ["route-hour"]
    answer = client.post(NATIVE, json=PROMPT)  # the refusal took nothing of the hour
    assert answer.headers["x-ratelimit-remaining-requests"] == str(HOURLY - 2)


def test_rate_is_charged_for_bad_requests_and_not_for_our_failures(
    limited: Served, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def left() -> int:
        answer = client.post(NATIVE, json=PROMPT)
        return int(answer.headers["x-ratelimit-remaining-requests"])

    assert left() == HOURLY - 1
    assert client.post(NATIVE, json={**PROMPT, "model": "nobody"}).status_code == 404
    assert client.post(NATIVE, json={"prompt": 1}).status_code == 400
    assert client.post("/v1/audio/speech", json={}).status_code == 403
    assert left() == HOURLY - 5

    def full(*_: object, **__: object) -> None:
        raise QueueFull()

    monkeypatch.setattr(limited.services.dispatcher, "admit", full)
    assert client.post(NATIVE, json=PROMPT).status_code == 503
    assert client.post(NATIVE, json={**PROMPT, "async": True}).status_code == 503
    assert client.post(CHAT, json=MESSAGES).status_code == 503
    monkeypatch.undo()
    assert client.post(NATIVE, json={**PROMPT, "prompt": "!crash"}).status_code == 502
    assert left() == HOURLY - 6
    own_time = client.post(NATIVE, json={**PROMPT, "prompt": "!wait", "timeout": 0.05})
    assert (own_time.status_code, left()) == (504, HOURLY - 8)


def test_rate_of_lower_tiers_shrinks_first_under_load(
    limited: Served, admin: httpx.Client, client: httpx.Client
) -> None:
    overload, headers = limited.services.dispatcher.overload, new_key(admin, "pro")
    before = overload.sustained
    try:
        overload.sustained = 1.0
        answer = httpx.post(limited.url + NATIVE, json=PROMPT, headers=headers)
        # Tier pro keeps half: of what it has at hand, and of what comes back.
        assert 25_000 < int(answer.headers["x-ratelimit-remaining-requests"]) < 32_000
        answer = client.post(NATIVE, json=PROMPT)
        assert answer.headers["x-ratelimit-remaining-requests"] == str(HOURLY - 1)
    finally:
        overload.sustained = before


# ---- places ------------------------------------------------------------------------------------


def test_concurrency_of_a_tier_is_refused_and_not_queued(
    limited: Served, admin: httpx.Client
) -> None:
    headers = new_key(admin, "pro")
    with ExitStack() as stack:
        client = stack.enter_context(
            httpx.Client(base_url=limited.url, headers=headers, timeout=60)
        )
        task = client.post(NATIVE, json={**PROMPT, "async": True, "prompt": "!stall"}).json()
        asked = {"model": "demo", "input": "!stall", "background": True}
        kept = f"/v1/responses/{client.post('/v1/responses', json=asked).json()['id']}"
        stack.enter_context(client.stream("POST", NATIVE, json=WAITING))
        stack.enter_context(open_watch(limited.url, task["task_id"], **headers))
        for path, body in ((NATIVE, PROMPT), (CHAT, MESSAGES)):
            refused = client.post(path, json=body)
            error = error_of(refused, 429, "CONCURRENCY_LIMIT_EXCEEDED")
            assert error["details"] == {"limit": 2, "violated_policies": ["concurrent"]}
            assert refused.headers["ratelimit"] == '"concurrent";r=0'
            assert refused.headers["retry-after"] == "1"
        status, error = refusal(limited.url, task["task_id"], **headers)
        assert (status, error["code"]) == (429, "CONCURRENCY_LIMIT_EXCEEDED")
        error_of(client.get(f"{kept}?stream=true"), 429, "rate_limit_exceeded")
        assert client.post(f"{kept}/cancel").status_code == 200
        assert client.get(f"/api/v1/tasks/{task['task_id']}").status_code == 200
        assert client.delete(f"/api/v1/tasks/{task['task_id']}").status_code == 202
    eventually(lambda: limited.services.admission.in_flight == 0)


def test_concurrency_of_one_never_refuses_one_after_the_other(
    limited: Served, admin: httpx.Client
) -> None:
    headers = new_key(admin, "enterprise")
    with httpx.Client(base_url=limited.url, headers=headers, timeout=60) as client:
        for number in range(40):
            answer = client.post(NATIVE, json={**PROMPT, "stream": number % 2 == 0})
            if answer.status_code == 429:
                assert answer.json()["error"]["code"] == "RATE_LIMIT_EXCEEDED"


def test_concurrency_is_free_again_after_a_watch(limited: Served, admin: httpx.Client) -> None:
    headers = new_key(admin, "pro")
    with httpx.Client(base_url=limited.url, headers=headers, timeout=60) as client:
        task = client.post(NATIVE, json={**PROMPT, "async": True}).json()["task_id"]
        for _ in range(5):
            with open_watch(limited.url, task, **headers) as socket:
                assert heard(socket)[1] == 1000
            ticket = client.post("/api/v1/auth/ws-ticket", json={"task_id": task}).json()
            query = f"?ticket={ticket['ticket']}"
            with open_watch(limited.url, task, query=query) as socket:
                assert heard(socket)[1] == 1000
    eventually(lambda: limited.services.admission.in_flight == 0)


def test_concurrency_is_free_after_a_thousand_aborts_and_crashes(
    limited: Served, admin: httpx.Client
) -> None:
    """Nothing is in flight afterwards, and the key may do what it could before."""
    headers, chance = new_key(admin, "pro"), random.Random(16)
    prompts = ("hi", "!crash", "!cancel", "!refuse", "!stall", "!wait")

    async def one(client: httpx.AsyncClient) -> str:
        body = {**PROMPT, "prompt": chance.choice(prompts), "stream": chance.random() < 0.5}
        if chance.random() < 0.1:
            body["timeout"] = 0.02
        try:
            async with asyncio.timeout(chance.choice((0.005, 0.02, 0.05))):
                return str((await client.post(NATIVE, json=body)).status_code)
        except (TimeoutError, httpx.TransportError):
            return "aborted"

    async def storm() -> Counter[str]:
        async with httpx.AsyncClient(base_url=limited.url, headers=headers, timeout=60) as client:
            outcomes: Counter[str] = Counter()
            for _ in range(125):
                outcomes.update(await asyncio.gather(*(one(client) for _ in range(8))))
            return outcomes

    outcomes = asyncio.run(storm())
    assert outcomes["aborted"] > 50
    limited.wait_idle()
    eventually(lambda: limited.services.admission.in_flight == 0)
    with ExitStack() as stack:
        client = stack.enter_context(
            httpx.Client(base_url=limited.url, headers=headers, timeout=60)
        )
        for _ in range(2):
            opened = stack.enter_context(client.stream("POST", NATIVE, json=WAITING))
            assert opened.status_code == 200
        assert client.post(NATIVE, json=PROMPT).status_code == 429


# ---- wrong credentials -------------------------------------------------------------------------


def test_failed_logins_are_limited_by_address_and_valid_keys_pass(
    limited: Served, client: httpx.Client
) -> None:
    def ask(headers: dict[str, str]) -> httpx.Response:
        return httpx.get(f"{limited.url}/api/v1/models", headers=headers)

    def wrong(number: int) -> dict[str, str]:
        """Send one more wrong key, from another address each time."""
        other = f"203.0.113.{number}"
        said = {"x-forwarded-for": other, "x-real-ip": other, "forwarded": f"for={other}"}
        return {"x-api-key": f"bl-wrong-{number}", **said}

    answers = [ask(wrong(number)) for number in range(8)]
    codes = [answer.status_code for answer in answers]
    assert codes[:5] == [401] * 5
    error_of(answers[-1], 429, "RATE_LIMIT_EXCEEDED")
    assert int(answers[-1].headers["retry-after"]) <= 12
    assert refusal(limited.url, "x", query="?ticket=x")[0] == 429
    assert ask({}).status_code == 401  # none at all is no attempt
    assert client.get("/api/v1/models").status_code == 200


def test_limits_of_a_key_are_those_of_all_its_tokens(limited: Served, admin: httpx.Client) -> None:
    def bearers(tier: str) -> list[dict[str, str]]:
        """Return the headers of a new key, and of three tokens that were made with it."""
        key = new_key(admin, tier)
        made = [httpx.post(f"{limited.url}/api/v1/auth/token", headers=key) for _ in range(3)]
        return [key, *({"authorization": f"Bearer {each.json()['access_token']}"} for each in made)]

    with httpx.Client(base_url=limited.url, timeout=60) as anyone:
        known = bearers("free")
        codes = Counter(
            anyone.post(NATIVE, json=PROMPT, headers=known[number % 4]).status_code
            for number in range(HOURLY + 4)
        )
        assert codes == {200: HOURLY, 429: 4}
        _, first, second, _ = bearers("enterprise")
        with anyone.stream("POST", NATIVE, json=WAITING, headers=first):
            over = anyone.post(NATIVE, json=PROMPT, headers=second)
            error_of(over, 429, "CONCURRENCY_LIMIT_EXCEEDED")


# ---- what is left ------------------------------------------------------------------------------


def test_limits_are_shown_to_their_key_and_to_admins(
    admin: httpx.Client, client: httpx.Client
) -> None:
    client.post(NATIVE, json=PROMPT)
    client.post("/v1/completions", json={"model": "demo", "prompt": "hi"})
    shown = client.get("/api/v1/limits").json()
    assert (shown["tier"], shown["concurrent"]) == ("free", {"limit": None, "used": 0})
    hour, other, route = shown["rates"]
    assert 660 < hour.pop("reset_seconds") <= 720
    assert hour == {
        "name": "hour",
        "route": None,
        "limit": HOURLY,
        "window_seconds": 3600,
        "burst": HOURLY,
        "remaining": HOURLY - 2,
    }
    assert (other["name"], other["limit"]) == ("other", 3000)
    assert (route["name"], route["route"], route["remaining"]) == (
        "route-hour",
        "/v1/completions",
        0,
    )
    asked = {"key_id": shown["key_id"]}
    seen = admin.get("/api/v1/limits", params=asked).json()
    assert seen["rates"][0]["remaining"] == HOURLY - 2
    own = admin.get("/api/v1/limits").json()
    assert (own["tier"], own["rates"]) == ("operator", [])
    other_key = {"key_id": own["key_id"]}
    error_of(client.get("/api/v1/limits", params=other_key), 403, "INSUFFICIENT_SCOPE")
    missing = admin.get("/api/v1/limits", params={"key_id": "nobody"})
    error_of(missing, 404, "KEY_NOT_FOUND")


def test_limits_of_a_key_outlive_a_restart(tmp_path: Path) -> None:
    limits = {"tiers": TIERS}
    with (
        serve(tmp_path, limits=limits) as served,
        httpx.Client(base_url=served.url, headers=served.headers("admin"), timeout=60) as admin,
    ):
        headers = new_key(admin, "free")
        for _ in range(HOURLY):  # a bad request counts, too
            assert httpx.post(served.url + NATIVE, json={}, headers=headers).status_code == 400
        assert httpx.post(served.url + NATIVE, json={}, headers=headers).status_code == 429
        # What a kill at this moment would leave behind, after the second that a charge may take.
        eventually(lambda: rows(served.home.database, "SELECT * FROM limit_cells"))
    with serve(tmp_path, limits=limits) as served:
        refused = httpx.post(served.url + NATIVE, json={}, headers=headers)
        error_of(refused, 429, "RATE_LIMIT_EXCEEDED")
