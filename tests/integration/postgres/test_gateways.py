"""Two servers over one PostgreSQL and one Redis: what one holds, the other knows."""

import asyncio
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from bitinglip import __version__
from tests.support.gateways import Balancer, Pair, running_pair, statuses
from tests.support.http_client import NATIVE
from tests.support.postgres import PostgresServer
from tests.support.redis import RedisServer
from tests.support.task_client import ECHO, ONE_AT_A_TIME, SLOW, TASKS, await_status, begin
from tests.support.wait import eventually
from tests.support.websocket_client import heard, open_watch

NOTICE = ("--set", "server.drain_notice=0.5", "--set", "server.drain_timeout=10")

MOST = 25  #: requests of a key in an hour; the next one comes minutes later
_PRO = {"requests_per_hour": MOST, "requests_per_minute": 9999, "concurrent_requests": 999}
LIMITS = ("--set", f"limits.tiers.pro={json.dumps(_PRO)}")


@pytest.fixture(scope="module")
def pair(
    postgres: PostgresServer, redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """Provide two servers with a Redis, both running whenever a test begins."""
    folder, url = tmp_path_factory.mktemp("pair"), postgres.make()
    own = (*ONE_AT_A_TIME, *NOTICE, *LIMITS, "--set", f"redis.url={redis.url}")
    with running_pair(folder, url, *own) as servers:
        yield servers


@pytest.fixture
def clients(pair: Pair) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    with ExitStack() as stack:
        one, two = (stack.enter_context(server.client()) for server in pair.servers)
        yield one, two


def test_keys_and_tokens_of_one_server_work_on_the_other_until_they_are_revoked(
    pair: Pair, clients: tuple[httpx.Client, httpx.Client]
) -> None:
    one, two = clients
    made = one.post("/api/v1/keys", json={"name": "someone"}).json()
    key = {"X-API-Key": made["key"]}
    with pair.servers[0].client(headers=key) as here, pair.servers[1].client(headers=key) as there:
        eventually(lambda: there.get("/api/v1/models").status_code == 200)
        token = here.post("/api/v1/auth/token").json()["access_token"]
        bearer = {"Authorization": f"Bearer {token}", "X-API-Key": ""}
        with pair.servers[1].client(headers=bearer) as session:
            del session.headers["X-API-Key"]
            assert session.get("/api/v1/models").status_code == 200
            here.post("/api/v1/auth/revoke", json={"token": token})
            eventually(lambda: session.get("/api/v1/models").status_code == 401)
        two.delete(f"/api/v1/keys/{made['id']}")
        eventually(lambda: here.get("/api/v1/models").status_code == 401)


def test_gateways_show_each_other_and_their_signs_of_life(
    clients: tuple[httpx.Client, httpx.Client],
) -> None:
    def told(client: httpx.Client) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = client.get("/api/v1/cluster/status").json()["gateways"]
        return found

    eventually(lambda: all(len(told(each)) == 2 for each in clients))
    (first, second), (own, other) = map(told, clients)
    assert (first["own"], second["own"]) == (True, False)
    assert (own["id"], other["id"]) == (second["id"], first["id"])
    assert second["version"] == __version__
    assert second["started_at"] == own["started_at"]
    assert second["silent_seconds"] >= 0


def test_limit_of_a_key_holds_over_both_servers_at_once(
    pair: Pair, clients: tuple[httpx.Client, httpx.Client]
) -> None:
    key = clients[0].post("/api/v1/keys", json={"name": "busy", "tier": "pro"}).json()["key"]
    with pair.servers[1].client(headers={"X-API-Key": key}) as known:
        eventually(lambda: known.get("/v1/models").status_code == 200)

    async def ask() -> list[int]:
        headers = {"X-API-Key": key}
        async with (
            pair.servers[0].async_client(headers=headers) as here,
            pair.servers[1].async_client(headers=headers) as there,
        ):
            asked = [each.post(NATIVE, json=ECHO) for each in (here, there) * 40]
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    found = asyncio.run(ask())
    assert (found.count(200), set(found)) == (MOST, {200, 429})


def test_audit_chain_is_whole_where_two_servers_write_at_once(
    clients: tuple[httpx.Client, httpx.Client],
) -> None:
    def make(client: httpx.Client) -> None:
        for number in range(5):
            client.post("/api/v1/keys", json={"name": f"key {number}"})

    threads = [threading.Thread(target=make, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in clients:
        assert client.get("/api/v1/audit/verify").json()["valid"]
        entries = client.get("/api/v1/audit", params={"action": "key.create"}).json()
        assert entries["total"] >= 10


def test_task_of_one_server_is_seen_and_cancelled_through_the_other(
    pair: Pair, clients: tuple[httpx.Client, httpx.Client]
) -> None:
    one, two = clients
    running, waiting = begin(one, SLOW), begin(one, ECHO)
    await_status(two, running, "running")
    assert set(statuses(clients, f"{TASKS}/{waiting}")) <= {"queued", "loading"}
    listed = {each["task_id"] for each in two.get(TASKS).json()["data"]}
    assert {running, waiting} <= listed
    assert two.delete(f"{TASKS}/{waiting}").status_code == 202
    with open_watch(pair.servers[1].url, running, **pair.servers[1].headers) as socket:
        assert two.delete(f"{TASKS}/{running}").status_code == 202
        messages, _ = heard(socket)
    assert [name for name, _ in messages] == ["cancelled"]
    for each in (running, waiting):
        await_status(one, each, "cancelled")
        await_status(two, each, "cancelled")


def test_batch_of_one_server_is_read_and_cancelled_through_the_other(
    clients: tuple[httpx.Client, httpx.Client],
) -> None:
    one, two = clients
    quick, endless = (upload(one, prompt, count) for prompt, count in (("a", 3), ("!slow a", 2)))
    made = two.post("/v1/batches", json=asked(quick)).json()
    eventually(lambda: one.get(f"/v1/batches/{made['id']}").json()["status"] == "completed")
    results = one.get(f"/v1/batches/{made['id']}").json()["output_file_id"]
    lines = one.get(f"/v1/files/{results}/content").text.splitlines()
    assert {json.loads(line)["custom_id"] for line in lines} == {"0", "1", "2"}
    long = two.post("/v1/batches", json=asked(endless)).json()["id"]
    assert one.delete(f"/v1/files/{endless}").status_code == 409
    assert one.post(f"/v1/batches/{long}/cancel").json()["status"] == "cancelling"
    eventually(lambda: statuses(clients, f"/v1/batches/{long}") == ["cancelled"] * 2)


def upload(client: httpx.Client, prompt: str, count: int) -> str:
    """Keep a file of requests; return its id."""
    body = {"model": "demo-echo", "prompt": prompt, "max_tokens": 500 if "!" in prompt else 3}
    rows = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/completions", "body": body}
        for number in range(count)
    ]
    text = "\n".join(json.dumps(row) for row in rows)
    files = {"file": ("in.jsonl", text.encode()), "purpose": (None, b"batch")}
    return str(client.post("/v1/files", files=files).json()["id"])


def asked(file_id: str) -> dict[str, str]:
    return {
        "input_file_id": file_id,
        "endpoint": "/v1/completions",
        "completion_window": "24h",
    }


def test_rolling_restart_fails_no_request_and_loses_no_task(pair: Pair) -> None:
    addresses = {index: server.url for index, server in enumerate(pair.servers)}
    tasks = []
    with Balancer(addresses, pair.servers[0].key) as balancer:
        balancer.more(6)
        for index in (0, 1):
            server = pair.servers[index]
            with server.client() as client:
                tasks.append(begin(client, {**SLOW, "max_tokens": 2}))
                tasks += [begin(client, ECHO) for _ in range(2)]
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(60) == 0
            balancer.more(4)
            addresses[index] = pair.start(index).url
            balancer.more(6)
    assert balancer.faults == []
    assert set(balancer.statuses) == {200}
    with pair.servers[0].client() as client:
        for each in tasks:
            await_status(client, each, "completed")


def test_server_that_stood_still_leaves_what_others_took_up(
    pair: Pair, clients: tuple[httpx.Client, httpx.Client]
) -> None:
    one, two = clients
    running = begin(one, SLOW)
    await_status(one, running, "running")
    waiting = begin(one, ECHO)
    pair.servers[0].process.send_signal(signal.SIGSTOP)
    try:
        await_status(two, running, "failed")
        await_status(two, waiting, "completed")
    finally:
        pair.servers[0].process.send_signal(signal.SIGCONT)
    eventually(lambda: statuses(clients, f"{TASKS}/{running}") == ["failed"] * 2)
    eventually(lambda: statuses(clients, f"{TASKS}/{waiting}") == ["completed"] * 2)
    eventually(pair.servers[0].idle)
    later = begin(one, ECHO)
    await_status(two, later, "completed")


def test_tasks_of_a_killed_server_end_on_the_other_each_once(
    pair: Pair, clients: tuple[httpx.Client, httpx.Client]
) -> None:
    one, two = clients
    before = requests_of(two)
    running = begin(one, SLOW)
    await_status(one, running, "running")
    waiting = [begin(one, ECHO) for _ in range(3)]
    pair.servers[0].process.kill()
    pair.servers[0].process.wait(60)
    lost = await_status(two, running, "failed")
    assert lost["error"]["code"] == "SHUTTING_DOWN"
    for each in waiting:
        assert await_status(two, each, "completed")["result"]["text"] == "one two three one two"
    again = pair.start(0)
    with again.client() as client:
        for each in (running, *waiting):
            assert client.get(f"{TASKS}/{each}").json()["status"] in ("failed", "completed")
        assert client.post(NATIVE, json=ECHO).status_code == 200
        assert client.get("/api/v1/audit/verify").json()["valid"]
    eventually(lambda: requests_of(two) >= before + len(waiting))
    assert requests_of(two) <= before + len(waiting) + 1  # and what was asked just now


def requests_of(client: httpx.Client) -> int:
    rows = client.get("/api/v1/usage", params={"group_by": "key"}).json()["data"]
    return sum(int(row["requests"]) for row in rows)
