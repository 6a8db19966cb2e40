"""Quotas of keys: every door refuses alike, and what is refused costs nothing."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from bitinglip.access.usage.amounts import Amounts
from tests.support.api_server import Served, serve
from tests.support.http_client import CHAT, MESSAGES, NATIVE, PROMPT, error_of
from tests.support.metered_server import (
    IMAGE,
    KEYS,
    LIMITS,
    TIERS,
    key_id,
    new_client,
    play,
    quota,
    refusals,
    total,
)
from tests.support.wait import eventually

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


def test_quota_is_refused_alike_on_every_surface(metered: Served, admin: httpx.Client) -> None:
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
            wait = refused.headers["retry-after"]
            assert refused.headers["ratelimit"] == f'"daily.tokens";r=0;t={wait}'
            own = refused.headers["ratelimit-policy"].rpartition(", ")[2]
            assert own == '"daily.tokens";q=3;qu="tokens"'
            assert "x-ratelimit-remaining-requests" not in refused.headers
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


def test_quota_does_not_bound_the_operator(admin: httpx.Client) -> None:
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

    def seconds(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            meter.exhausted(own, (0, 1))
            reservation = meter.reserve(own, "m", lambda: (1, 500, 0, 0, 0))
            meter.settle(reservation, Amounts(1, 10, 10))
        return (time.perf_counter() - began) / count

    assert min(seconds(200) for _ in range(10)) < 0.001


# ---- rates in tokens ---------------------------------------------------------------------------


def test_rate_in_tokens_is_reserved_settled_and_told_on_every_surface(
    metered: Served, admin: httpx.Client
) -> None:
    with new_client(admin, tier="enterprise") as client:
        for path, body in (
            (NATIVE, {**PROMPT, "stream": True}),
            (CHAT, MESSAGES),
            (NATIVE, PROMPT),
        ):
            answer = client.post(path, json={**body, "max_tokens": 100})
            assert answer.status_code == 200
            assert answer.headers["x-ratelimit-limit-tokens"] == "150"
            assert '"tokens";q=150;w=60;qu="tokens"' in answer.headers["ratelimit-policy"]
            left = int(answer.headers["x-ratelimit-remaining-tokens"])
            assert f'"tokens";r={left};t=' in answer.headers["ratelimit"]
        assert left >= 150 - 3 * 3  # what was not used came back
        before = refusals(metered, "tokens", "enterprise")
        stalled = {**PROMPT, "prompt": "!stall", "max_tokens": 1_000_000, "stream": True}
        with client.stream("POST", NATIVE, json=stalled) as stream:
            assert int(stream.headers["x-ratelimit-remaining-tokens"]) < 50
            for path, body in ((NATIVE, PROMPT), (CHAT, MESSAGES)):
                refused = client.post(path, json={**body, "max_tokens": 100})
                error = error_of(refused, 429, "RATE_LIMIT_EXCEEDED")
                assert error["details"]["violated_policies"] == ["tokens"]
                seconds = int(refused.headers["retry-after"])
                assert 10 <= seconds <= 60
                assert refused.headers["ratelimit"].startswith('"tokens";r=')
                assert int(refused.headers["ratelimit"].rpartition("=")[2]) <= seconds
                assert "x-should-retry" not in refused.headers
                assert "x-ratelimit-remaining-requests" not in refused.headers
            image = client.post("/api/v1/inference/image-generation", json={**IMAGE, "async": True})
            assert image.status_code == 202
        eventually(lambda: _tokens_left(client) > 100)
        assert refusals(metered, "tokens", "enterprise") == before + 2


def _tokens_left(client: httpx.Client) -> int:
    rates = client.get(LIMITS).json()["rates"]
    return int(next(each for each in rates if each["name"] == "tokens")["remaining"])


def test_scope_that_is_missing_comes_before_a_quota_that_is_spent(admin: httpx.Client) -> None:
    spent = {"daily": {"requests": 1}}
    with new_client(admin, scopes=["inference:image"], quotas=spent) as client:
        image = client.post("/api/v1/inference/image-generation", json=IMAGE)
        assert image.status_code == 200, image.text
        error_of(client.post(NATIVE, json=PROMPT), 403, "INSUFFICIENT_SCOPE")
