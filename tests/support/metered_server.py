"""A server of scripted workers, and what its clients see of usage and quotas."""

import re
from collections.abc import AsyncIterator
from typing import Any

import httpx

from tests.support.api_server import UNLIMITED, Served, echo
from workers import protocol

KEYS, USAGE, LIMITS = "/api/v1/keys", "/api/v1/usage", "/api/v1/limits"
IMAGE = {"model": "painter", "prompt": "x", "width": 64, "height": 128, "steps": 2, "n": 2}
PIXELS = 2 * 64 * 128
TIERS: dict[str, Any] = {
    "free": UNLIMITED,
    "pro": {**UNLIMITED, "daily": {"requests": 10}, "monthly": {"tokens": 1_000_000}},
    # Of the highest priority: no load of the machine takes anything from these counts.
    "enterprise": {"tokens_per_minute": 150, "priority": 3},
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


def new_client(admin: httpx.Client, **fields: Any) -> httpx.Client:
    """Return a client with a key of its own."""
    body = {"name": "someone", "scopes": ["inference:text", "inference:image"], **fields}
    made = admin.post(KEYS, json=body)
    assert made.status_code == 201, made.text
    headers = {"X-API-Key": made.json()["key"]}
    return httpx.Client(base_url=admin.base_url, headers=headers, timeout=60)


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


def refusals(metered: Served, reason: str, tier: str = "free") -> float:
    """Return how many requests of a tier a limit has refused, as the metrics say."""
    exported = httpx.get(metered.url + "/metrics").text
    pattern = f'bitinglip_limit_refusals_total{{reason="{reason}",tier="{tier}"}} (.*)'
    found = re.search(pattern, exported)
    return float(found[1]) if found else 0.0
