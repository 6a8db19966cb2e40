"""Headers of limits as clients use them: the official client, browsers, and wrong keys."""

import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from bitinglip.access.limits import headers as limit_headers
from tests.support.api_server import Served, serve
from tests.support.http_client import NATIVE, PROMPT, error_of

#: 0.5 s between two requests
LIMITS = {
    "tiers": {
        "free": {"requests_per_minute": 120, "burst": 1},
        "pro": {"requests_per_minute": None, "requests_per_hour": 1},
    },
    "failed_logins_per_minute": 3,
}
ORIGIN = {"origin": "https://app.example"}
MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    server = {"cors_origins": [ORIGIN["origin"]]}
    with serve(tmp_path_factory.mktemp("limits"), limits=LIMITS, server=server) as served:
        yield served


def new_key(served: Served, tier: str) -> str:
    body = {"name": tier, "tier": tier, "scopes": ["inference:text"]}
    made = httpx.post(f"{served.url}/api/v1/keys", json=body, headers=served.headers("admin"))
    return str(made.json()["key"])


def official(served: Served, tier: str) -> openai.OpenAI:
    key = new_key(served, tier)
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=5, timeout=60)


def refusals(served: Served) -> int:
    """Count the chat completions that were refused with 429."""
    text = httpx.get(f"{served.url}/metrics").text
    line = (
        r'gateway_requests_total\{endpoint="/v1/chat/completions",method="POST",status="429"\} (.+)'
    )
    found = re.search(line, text)
    return int(float(found[1])) if found else 0


def test_retry_of_the_official_client_waits_as_long_as_it_is_told(served: Served) -> None:
    before = refusals(served)
    with official(served, "free") as client:
        began, sent, told = time.monotonic(), 0, before
        while told < before + 2 and sent < 30:  # three, unless the machine stands still
            answer: Any = client.chat.completions.create(
                model="demo", messages=MESSAGES, stream=sent % 2 == 1
            )
            if sent % 2:
                assert len(list(answer)) > 2
            sent, last, told = sent + 1, told, refusals(served)
            # One that came too early was told once when to come again, and then passed.
            assert told - last <= (1 if sent > 1 else 0)
        assert time.monotonic() - began > 0.5 * (sent - 1) * 0.8


def test_retry_is_left_out_where_it_would_take_too_long(served: Served) -> None:
    before = refusals(served)
    with official(served, "pro") as client:
        client.chat.completions.create(model="demo", messages=MESSAGES)
        with pytest.raises(openai.RateLimitError) as refused:
            client.chat.completions.create(model="demo", messages=MESSAGES)
        assert int(refused.value.response.headers["retry-after"]) > 3500
    assert refusals(served) == before + 1


def test_failed_logins_are_told_their_limit(served: Served) -> None:
    answers = [
        httpx.get(f"{served.url}/api/v1/models", headers={"x-api-key": "wrong", **ORIGIN})
        for _ in range(4)
    ]
    assert [answer.status_code for answer in answers] == [401, 401, 401, 429]
    assert not {"ratelimit", "retry-after"} & set(answers[0].headers)
    refused = answers[-1]
    error_of(refused, 429, "RATE_LIMIT_EXCEEDED")
    seconds = int(refused.headers["retry-after"])
    assert refused.headers["ratelimit-policy"] == '"failed-logins";q=3;w=60'
    assert refused.headers["ratelimit"] == f'"failed-logins";r=0;t={seconds}'
    assert refused.headers["x-ratelimit-limit-requests"] == "3"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    # All three come back in a minute, the first of them in twenty seconds.
    resets = refused.headers["x-ratelimit-reset-requests"]
    assert resets == ("1m0s" if seconds == 20 else f"{seconds + 40}s")
    assert 0 < int(refused.headers["retry-after-ms"]) <= 20_000
    check_exposed(refused)


def test_cors_exposes_the_headers_of_limits(served: Served) -> None:
    headers = {"x-api-key": new_key(served, "pro"), **ORIGIN}
    passed = httpx.post(served.url + NATIVE, json=PROMPT, headers=headers)
    refused = httpx.post(served.url + NATIVE, json=PROMPT, headers=headers)
    assert [passed.status_code, refused.status_code] == [200, 429]
    for answer in (passed, refused):
        check_exposed(answer)


def check_exposed(answer: httpx.Response) -> None:
    """Check that a page may read every header of ours that the answer has."""
    assert answer.headers["access-control-allow-origin"] == ORIGIN["origin"]
    exposed = {
        name.strip().lower() for name in answer.headers["access-control-expose-headers"].split(",")
    }
    own = {name for name in answer.headers if name.startswith(("x-", "ratelimit", "retry-"))}
    readable = own - {"x-content-type-options", "x-frame-options", "x-accel-buffering"}
    assert readable <= exposed
    assert {name.lower() for name in limit_headers.NAMES} <= exposed
    assert {"x-cache", "x-should-retry", "sunset", "deprecation"} <= exposed


def test_retry_of_the_official_client_stops_at_a_quota(served: Served) -> None:
    body = {"name": "n", "quotas": {"daily": {"requests": 1}}, "tier": "enterprise"}
    made = httpx.post(f"{served.url}/api/v1/keys", json=body, headers=served.headers("admin"))
    before = refusals(served)
    with openai.OpenAI(
        base_url=f"{served.url}/v1", api_key=made.json()["key"], max_retries=5, timeout=60
    ) as client:
        client.chat.completions.create(model="demo", messages=MESSAGES)
        with pytest.raises(openai.RateLimitError) as refused:
            client.chat.completions.create(model="demo", messages=MESSAGES)
    assert refused.value.response.json()["error"]["code"] == "insufficient_quota"
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert refusals(served) == before + 1
