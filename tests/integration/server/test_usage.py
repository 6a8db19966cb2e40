"""Usage of keys on a real server: sums are what clients saw, and a kill loses a second at most."""

import csv
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx
import openai
import pytest

from tests.support.awake import AwakeClock
from tests.support.cli_process import run
from tests.support.http_client import CHAT, NATIVE
from tests.support.server import Server, running_server
from tests.support.task_client import ECHO, begin
from tests.support.wait import eventually
from tests.support.websocket_client import heard, open_watch

pytestmark = pytest.mark.usefixtures("away_from_midnight")

USAGE, LIMITS = "/api/v1/usage", "/api/v1/limits"
HOURLY = 10_000
#: seconds before a kill of which charges may be lost; a second, and what a busy machine adds
LOST_SECONDS = 2.5


def new_key(server: Server, **fields: Any) -> dict[str, str]:
    """Make a key; return its header."""
    with server.client() as admin:
        body = {"name": "someone", "tier": "enterprise", **fields}
        return {"X-API-Key": admin.post("/api/v1/keys", json=body).json()["key"]}


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client(headers=new_key(server)) as client:
        yield client


def total(client: httpx.Client) -> dict[str, Any]:
    """Return all that a client's key has used."""
    rows = client.get(USAGE, params={"group_by": "model"}).json()["data"]
    names = [name for name in rows[0] if name != "model"] if rows else ["requests", "total_tokens"]
    return {name: sum(row[name] for row in rows) for name in names}


def test_usage_sums_of_all_kinds_are_what_clients_saw(server: Server, client: httpx.Client) -> None:
    official = openai.OpenAI(
        base_url=f"{server.url}/v1", api_key=client.headers["x-api-key"], max_retries=0
    )
    seen: Counter[str] = Counter()

    def ask(path: str, **body: Any) -> dict[str, Any]:
        answer = client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        used: dict[str, Any] = answer.json()["usage"]
        seen["requests"] += 1
        seen["total_tokens"] += used.get("total_tokens", 0)
        seen["pixels"] += round(used.get("megapixels", 0) * 1e6)
        seen["audio_us"] += round(used.get("audio_seconds", 0) * 1e6)
        return used

    ask(NATIVE, model="demo-text", prompt="Once upon", max_tokens=7)
    ask(CHAT, model="demo-text", max_tokens=5, messages=[{"role": "user", "content": "hi"}])
    stream = official.chat.completions.create(
        model="demo-text",
        max_tokens=6,
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    last = [chunk.usage for chunk in stream][-1]
    assert last is not None
    seen.update(requests=1, total_tokens=last.total_tokens)
    image = {"prompt": "x", "width": 64, "height": 64, "steps": 2, "n": 2}
    ask("/api/v1/inference/image-generation", model="demo-image", **image)
    ask("/api/v1/inference/text-to-speech", model="demo-speech", text="Hello.")
    ask("/v1/embeddings", model="demo-embedding", input=["some", "words"])
    task = begin(client, ECHO)
    with open_watch(server.url, task, **{"X-API-Key": client.headers["x-api-key"]}) as socket:
        watched = heard(socket)[0][-1][1]["usage"]
    seen.update(requests=1, total_tokens=watched["total_tokens"])
    found = total(client)
    assert seen["pixels"] == 2 * 64 * 64
    assert seen["audio_us"] > 0
    assert (found["requests"], found["total_tokens"]) == (seen["requests"], seen["total_tokens"])
    assert round(found["megapixels"] * 1e6) == seen["pixels"]
    assert round(found["audio_seconds"] * 1e6) == seen["audio_us"]
    assert found["gpu_seconds"] == 0  # nothing here has one


def test_usage_of_an_openai_stream_that_is_left_is_what_was_made(
    server: Server, client: httpx.Client
) -> None:
    body = {"model": "demo-echo", "max_tokens": 50, "stream": True}
    messages = [{"role": "user", "content": "!slow a"}]
    with client.stream("POST", CHAT, json={**body, "messages": messages}) as stream:
        next(line for line in stream.iter_lines() if "content" in line)
    eventually(server.idle)
    eventually(lambda: total(client)["requests"] == 1)
    assert 2 <= total(client)["total_tokens"] < 50


@dataclass
class Load:
    """Holds clients of one key, and when each of their requests was answered."""

    server: Server
    headers: dict[str, str]
    clock: AwakeClock
    answered: list[float] = field(default_factory=list)
    sent: int = 0

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(4)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        with self.server.client(headers=self.headers) as client:
            while not self._stop.wait(0.02):
                self.sent += 1
                try:
                    answer = client.post(NATIVE, json=ECHO)
                except httpx.TransportError:
                    return  # it was killed
                assert answer.status_code == 200, answer.text
                self.answered.append(self.clock())

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_usage_and_rates_lose_a_second_at_most_when_the_server_is_killed(tmp_path: Path) -> None:
    home, chance = tmp_path / "home", Random(16)
    headers: dict[str, str] = {}
    certain, sent, began = 0, 0, time.monotonic()
    # Of the highest priority: no load of the machine takes anything from these counts.
    limits = {"requests_per_hour": HOURLY, "requests_per_minute": "null", "priority": 3}
    sets = [f"limits.tiers.enterprise.{name}={value}" for name, value in limits.items()]
    sets = [word for each in sets for word in ("--set", each)]
    for _ in range(2):
        with running_server(home, *sets) as server:
            headers = headers or new_key(server, quotas={"daily": {"requests": 100_000}})
            with server.client(headers=headers) as client:
                assert client.post(NATIVE, json=ECHO).status_code == 200  # it is not locked
                certain, sent = certain + 1, sent + 1
                check_counts(client, certain, sent, began)
            with AwakeClock() as clock:
                load = Load(server, headers, clock)
                time.sleep(LOST_SECONDS + chance.uniform(0.2, 1.2))
                killed = clock()
                server.process.kill()
                server.process.wait(60)
                load.end()
        certain += sum(at < killed - LOST_SECONDS for at in load.answered)
        sent += load.sent
    with running_server(home, *sets) as server, server.client(headers=headers) as client:
        check_counts(client, certain, sent, began)
        online = run(home, "usage", "--json")
        assert online.returncode == 0, online.stderr
        rows = json.loads(online.stdout)
        (row,) = [row for row in rows if row["key_name"] == "someone"]
        assert row["model"] == "demo-echo"
        assert certain <= row["requests"] <= sent
        assert "someone" in run(home, "usage", "--by", "key,month").stdout
    # Nothing is lost by a stop, and the command reads the same without a server.
    assert json.loads(run(home, "usage", "--json").stdout) == rows
    one = run(home, "usage", "--csv", "--key", row["key_id"], "--by", "key").stdout
    (parsed,) = csv.DictReader(io.StringIO(one))
    assert (parsed["key_name"], int(parsed["requests"])) == ("someone", row["requests"])
    assert run(home, "usage", "--csv", "--model", "none").stdout.startswith("day,key_id,")
    wrong = run(home, "usage", "--from", "yesterday")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)


def check_counts(client: httpx.Client, certain: int, sent: int, began: float) -> None:
    """Compare what the server has counted of a key with what its clients know."""
    each = 3 + 5  # tokens of the prompt, and those that it asks for
    used, limits = total(client), client.get(LIMITS).json()
    assert certain <= used["requests"] <= sent
    assert used["total_tokens"] == used["requests"] * each
    (quota,) = limits["quotas"]
    assert certain <= quota["used"] <= sent
    (hour,) = [rate for rate in limits["rates"] if rate["name"] == "hour"]
    earned_back = 10 + HOURLY / 3600 * (time.monotonic() - began)
    assert HOURLY - sent <= hour["remaining"] <= HOURLY - certain + earned_back
    assert limits["concurrent"]["used"] == 0
