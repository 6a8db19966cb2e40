"""The order in which a request is judged, and what no disguise of a request changes about it."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.api_server import Served, serve
from tests.support.http_client import CHAT, MESSAGES, NATIVE, PROMPT, error_of

KEYS, TOKEN = "/api/v1/keys", "/api/v1/auth/token"
HOURLY = 6
SPEECH = "/api/v1/inference/text-to-speech"
TIERS = {
    "free": {"requests_per_hour": HOURLY, "concurrent_requests": 1, "priority": 3},
    "pro": {"requests_per_hour": HOURLY, "requests_per_minute": None, "priority": 3},
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("order"), limits={"tiers": TIERS}) as served:
        yield served


def new_key(admin: httpx.Client, **fields: Any) -> tuple[str, dict[str, str]]:
    asked = {"name": "n", "scopes": ["inference:text"], "tier": "pro", **fields}
    made = admin.post(KEYS, json=asked)
    assert made.status_code == 201, made.text
    return made.json()["id"], {"x-api-key": made.json()["key"]}


def left(served: Served, key: dict[str, str]) -> int:
    """Return what is left of the hour, by a request that takes one of it."""
    answer = httpx.post(served.url + NATIVE, json=PROMPT, headers=key)
    return int(answer.headers["x-ratelimit-remaining-requests"])


def test_order_of_refusals_is_one_of_a_request_with_every_fault(
    served: Served, admin: httpx.Client
) -> None:
    """Each step finds its fault only when those before it find none."""
    key_id, key = new_key(admin, ip_ranges=["10.0.0.0/8"], models=["painter"])
    bad = {"model": "org/deep", "prompt": 1, "unknown": True}

    def ask(path: str, body: Any, headers: dict[str, str], status: int, code: str) -> None:
        error_of(httpx.post(served.url + path, json=body, headers=headers), status, code)

    ask(SPEECH, bad, {"x-api-key": "blk_live_wrong"}, 401, "INVALID_API_KEY")
    ask(SPEECH, bad, key, 403, "IP_NOT_ALLOWED")
    admin.patch(f"{KEYS}/{key_id}", json={"ip_ranges": None})
    ask(SPEECH, bad, key, 403, "INSUFFICIENT_SCOPE")
    ask(NATIVE, bad, key, 400, "INVALID_REQUEST")
    ask(NATIVE, {**PROMPT, "model": "org/deep"}, key, 403, "MODEL_NOT_ALLOWED")
    admin.patch(f"{KEYS}/{key_id}", json={"models": None, "quotas": {"daily": {"requests": 1}}})
    assert left(served, key) == HOURLY - 4  # the first two counted for no key
    ask(NATIVE, PROMPT, key, 429, "QUOTA_EXCEEDED")
    admin.patch(f"{KEYS}/{key_id}", json={"quotas": {}})
    assert left(served, key) == HOURLY - 5  # the quota's refusal was free
    assert left(served, key) == 0
    ask(NATIVE, PROMPT, key, 429, "RATE_LIMIT_EXCEEDED")
    admin.delete(f"{KEYS}/{key_id}")
    ask(NATIVE, PROMPT, key, 401, "INVALID_API_KEY")


def test_order_of_limits_charges_no_rate_where_no_place_is_free(
    served: Served, admin: httpx.Client
) -> None:
    _, key = new_key(admin, tier="free")
    stall = {**PROMPT, "prompt": "!stall", "stream": True}
    with httpx.stream("POST", served.url + NATIVE, json=stall, headers=key):
        for path, body in ((NATIVE, PROMPT), (CHAT, MESSAGES), (NATIVE, {"prompt": 1})) * 2:
            refused = httpx.post(served.url + path, json=body, headers=key)
            error_of(refused, 429, "CONCURRENCY_LIMIT_EXCEEDED")
    served.wait_idle()
    assert left(served, key) == HOURLY - 2


def test_rate_is_one_however_a_request_is_disguised(served: Served, admin: httpx.Client) -> None:
    """Its key in another header or case, a token, `user`, another address, a new secret."""
    key_id, key = new_key(admin)
    secret = key["x-api-key"]
    token = httpx.post(served.url + TOKEN, headers=key).json()["access_token"]
    rotated = admin.post(f"{KEYS}/{key_id}/rotate", json={"grace": "1h"}).json()["key"]
    far = {"x-forwarded-for": "203.0.113.9", "x-tenant": "other", "openai-organization": "o"}
    disguises: list[tuple[dict[str, str], str, dict[str, Any]]] = [
        ({"X-API-KEY": secret}, NATIVE, PROMPT),
        ({"AUTHORIZATION": f"BEARER {secret}"}, CHAT, {**MESSAGES, "user": "somebody"}),
        ({"authorization": f"Bearer {token}"}, CHAT, {**MESSAGES, "user": "else"}),
        ({"x-api-key": rotated, **far}, NATIVE, PROMPT),
        ({"x-api-key": rotated}, "/v1/completions?x=1", PROMPT),
    ]
    rest = []
    for headers, path, body in disguises:
        answer = httpx.post(served.url + path, json=body, headers=headers)
        rest.append(int(answer.headers["x-ratelimit-remaining-requests"]))
    assert rest == list(range(HOURLY - 1, HOURLY - 1 - len(rest), -1))
    assert len(rest) == len(disguises)
    while left(served, {"x-api-key": rotated}):
        pass
    for headers, _, _ in disguises:
        refused = httpx.post(served.url + NATIVE, json=PROMPT, headers=headers)
        error_of(refused, 429, "RATE_LIMIT_EXCEEDED")
    again = admin.post(f"{KEYS}/{key_id}/rotate", json={"grace": "0s"}).json()["key"]
    refused = httpx.post(served.url + NATIVE, json=PROMPT, headers={"x-api-key": again})
    error_of(refused, 429, "RATE_LIMIT_EXCEEDED")
