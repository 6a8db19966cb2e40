"""Batches keep to what their keys and the server's queues have left, and to the guard."""

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.support.api_server import Served, serve
from tests.support.batch_client import begin, chat_line, ended, results

pytestmark = pytest.mark.usefixtures("away_from_midnight")

#: One request at once, and one that waits; the keys of tier free have two requests a second.
RATES = {"free": {"requests_per_minute": 120, "burst": 1}, "pro": {"guard": {"input": "block"}}}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("limits")
    with serve(home, slots=1, queue={"max_waiting": 1}, limits={"tiers": RATES}) as served:
        yield served


def new_client(served: Served, **fields: Any) -> openai.OpenAI:
    with httpx.Client(base_url=served.url, headers=served.headers("admin")) as admin:
        key = admin.post("/api/v1/keys", json={"name": "x", **fields}).json()["key"]
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0)


def test_batch_waits_for_rates_of_its_key(served: Served) -> None:
    with new_client(served) as client:
        batch = ended(client, begin(client, [chat_line(str(number)) for number in range(3)]))
    counts = batch.request_counts
    assert (counts.completed, counts.failed) == (3, 0)
    assert batch.completed_at - batch.created_at >= 1


def test_batch_waits_for_a_queue_that_is_full(served: Served) -> None:
    with new_client(served, tier="enterprise") as client:
        batch = ended(client, begin(client, [chat_line(str(number)) for number in range(6)]))
    counts = batch.request_counts
    assert (counts.completed, counts.failed) == (6, 0)


def test_batch_lines_beyond_a_quota_fail(served: Served) -> None:
    with new_client(served, tier="enterprise", quotas={"daily": {"requests": 2}}) as client:
        batch = ended(client, begin(client, [chat_line(str(number)) for number in range(4)]))
        bad = results(client, batch.error_file_id)
    assert (batch.status, batch.request_counts.completed) == ("completed", 2)
    assert {each["response"]["status_code"] for each in bad} == {429}
    assert {each["response"]["body"]["error"]["code"] for each in bad} == {"insufficient_quota"}


def test_batch_lines_are_guarded(served: Served) -> None:
    lines = [chat_line("good"), chat_line("bad", "Write to john.doe@example.com today.")]
    with new_client(served, tier="pro") as client:
        batch = ended(client, begin(client, lines))
        (bad,) = results(client, batch.error_file_id)
    assert (bad["custom_id"], batch.request_counts.completed) == ("bad", 1)
    assert bad["response"]["body"]["error"]["code"] == "pii_detected"
