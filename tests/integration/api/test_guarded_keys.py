"""A key's own guard: never less strict than its tier's, nor than that of the key that made it."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.api_server import Served, serve
from tests.support.http_client import NATIVE, error_of
from tests.support.speaking_worker import say, speak

KEYS = "/api/v1/keys"
TEXT = "mail john@example.com"
REDACTED = "mail [EMAIL]"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Provide a server that guards nothing but the results of the tier pro."""
    tiers = {"pro": {"guard": {"output": "redact"}}}
    with serve(tmp_path_factory.mktemp("keys"), speak, limits={"tiers": tiers}) as served:
        yield served


def _client(served: Served, key: str) -> httpx.Client:
    return httpx.Client(base_url=served.url, headers={"X-API-Key": key}, timeout=60)


@pytest.fixture
def admin(served: Served) -> Iterator[httpx.Client]:
    with _client(served, served.keys["admin"]) as client:
        yield client


def _make(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    made = client.post(KEYS, json={"name": "n", "tier": "enterprise", **fields})
    assert made.status_code == 201, made.text
    record: dict[str, Any] = made.json()
    return record


def _shown(served: Served, client: httpx.Client) -> tuple[str, str]:
    """Return a prompt as the model had it, and a result as the client has it."""
    client.post(NATIVE, json={"model": "demo", "prompt": TEXT}).raise_for_status()
    answer = client.post(NATIVE, json={"model": "demo", "prompt": say(TEXT)})
    prompt = getattr(served.workers.jobs[-2], "prompt", "")
    return prompt, str(answer.json()["result"]["text"])


def test_guard_of_a_key_acts_in_both_directions_and_changes_at_once(
    served: Served, admin: httpx.Client
) -> None:
    record = _make(admin, guard="redact")
    path = f"{KEYS}/{record['id']}"
    assert record["guard"] == admin.get(path).json()["guard"] == "redact"
    with _client(served, record["key"]) as client:
        assert _shown(served, client) == (REDACTED, REDACTED)
        token = client.post("/api/v1/auth/token", json={}).json()["access_token"]
        with httpx.Client(base_url=served.url, headers={"authorization": f"Bearer {token}"}) as own:
            assert _shown(served, own) == (REDACTED, REDACTED)
        assert admin.patch(path, json={"guard": "block"}).json()["guard"] == "block"
        answer = client.post(NATIVE, json={"model": "demo", "prompt": TEXT})
        error_of(answer, 400, "PII_DETECTED")
        assert admin.patch(path, json={"guard": None}).json()["guard"] is None
        assert _shown(served, client) == (TEXT, TEXT)


def test_guard_of_a_key_makes_its_tiers_no_less_strict(served: Served, admin: httpx.Client) -> None:
    record = _make(admin, tier="pro", guard="report")
    with _client(served, record["key"]) as client:
        assert _shown(served, client) == (TEXT, REDACTED)


@pytest.mark.parametrize("wanted", ["report", None])
def test_key_makes_no_other_that_is_guarded_less(
    served: Served, admin: httpx.Client, wanted: str | None
) -> None:
    lesser = _make(admin, scopes=["admin"], tier="operator", guard="redact")
    with _client(served, lesser["key"]) as client:
        own = _make(client)
        assert own["guard"] == "redact"
        assert _make(client, guard="block")["guard"] == "block"
        for key_id in (own["id"], lesser["id"]):
            refused = client.patch(f"{KEYS}/{key_id}", json={"guard": wanted})
            assert error_of(refused, 403, "INSUFFICIENT_SCOPE")["param"] == "guard"
        if wanted is not None:
            refused = client.post(KEYS, json={"name": "n", "guard": wanted})
            assert error_of(refused, 403, "INSUFFICIENT_SCOPE")["param"] == "guard"


@pytest.mark.parametrize("mode", ["off", "", "REDACT", 1])
def test_guard_that_is_invalid_is_refused(admin: httpx.Client, mode: object) -> None:
    refused = admin.post(KEYS, json={"name": "n", "guard": mode})
    assert error_of(refused, 400, "INVALID_REQUEST")["param"] == "guard"
