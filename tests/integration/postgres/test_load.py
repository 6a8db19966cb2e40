"""A server over PostgreSQL under load: with few connections, and while the database restarts."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

import httpx
import pytest

from tests.support.http_client import NATIVE
from tests.support.postgres import PostgresServer
from tests.support.server import Server, running_server
from tests.support.task_client import ECHO, TASKS
from tests.support.wait import eventually

Route = tuple[str, str, dict[str, Any]]
#: each needs a connection, some more than one in turn
WRITE: tuple[Route, ...] = (
    ("POST", "/api/v1/keys", {"json": {"name": "one of many"}}),
    ("POST", NATIVE, {"json": ECHO, "headers": {"prefer": "respond-async"}}),
)
READ: tuple[Route, ...] = (
    ("GET", TASKS, {}),
    ("GET", "/api/v1/usage", {}),
    ("GET", "/api/v1/audit", {}),
    ("GET", "/v1/batches", {}),
    ("GET", "/readyz", {}),
)


@pytest.fixture(scope="module")
def server(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Provide a server that has two connections to read with."""
    own = {"url": postgres.make(), "pool_size": 2, "max_overflow": 0, "pool_timeout": 30}
    options = [f"database.{name}={value}" for name, value in own.items()]
    options += ["queue.max_waiting=1000", "demo=never"]
    options += ["models.demo-echo.engine=fake"]
    given = [word for each in options for word in ("--set", each)]
    with running_server(tmp_path_factory.mktemp("load") / "home", *given) as server:
        yield server


def test_two_connections_to_postgresql_serve_two_hundred_requests_at_once(server: Server) -> None:
    # Those that write wait for their turn for five seconds at most: few, for a busy machine.
    every = [*islice(cycle(READ), 90), *islice(cycle(WRITE), 20), *islice(cycle(READ), 90)]

    async def ask() -> Counter[int]:
        async with server.async_client() as client:
            asked = [client.request(method, path, **options) for method, path, options in every]
            return Counter(answer.status_code for answer in await asyncio.gather(*asked))

    assert set(asyncio.run(ask())) == {200, 201, 202}
    eventually(server.idle)


def test_postgresql_that_is_killed_under_load_loses_nothing_that_was_acknowledged(
    server: Server, postgres: PostgresServer
) -> None:
    kept: dict[str, list[str]] = {"keys": [], "tasks": []}
    refused: list[httpx.Response] = []
    seen: Counter[int] = Counter()

    async def ask(client: httpx.AsyncClient, number: int, over: asyncio.Event) -> None:
        while not over.is_set():
            if number % 2:
                answer = await client.post("/api/v1/keys", json={"name": "kept"})
            else:
                answer = await client.post(NATIVE, json=ECHO, headers={"prefer": "respond-async"})
            seen[answer.status_code] += 1
            if answer.status_code == 201:
                kept["keys"].append(answer.json()["id"])
            elif answer.status_code == 202:
                kept["tasks"].append(answer.json()["task_id"])
            else:
                refused.append(answer)
                await asyncio.sleep(0.05)

    async def run() -> None:
        async with server.async_client() as client, asyncio.timeout(120):
            over = asyncio.Event()
            asking = [asyncio.create_task(ask(client, number, over)) for number in range(6)]
            await more(kept, 5)
            await asyncio.to_thread(postgres.stop)  # at once, as a kill is
            while not refused:  # noqa: ASYNC110  the server tells nobody else
                await asyncio.sleep(0.05)
            await asyncio.to_thread(postgres.start)
            await more(kept, 5)
            over.set()
            await asyncio.gather(*asking)

    asyncio.run(run())
    assert set(seen) == {201, 202, 503}
    assert {each.json()["error"]["code"] for each in refused} == {"OVERLOADED"}
    assert all("retry-after" in each.headers for each in refused)
    with server.client() as client:
        for key in kept["keys"]:
            client.get(f"/api/v1/keys/{key}").raise_for_status()
        for task in kept["tasks"]:
            eventually(lambda at=task: status(client, at) == "completed")
        eventually(lambda: client.get("/health").json()["status"] == "healthy")
        assert client.get("/api/v1/audit/verify").json()["valid"]
    eventually(server.idle)


async def more(kept: dict[str, list[str]], count: int) -> None:
    """Wait until so many further keys and tasks were acknowledged."""
    until = {name: len(each) + count for name, each in kept.items()}
    while any(len(kept[name]) < least for name, least in until.items()):  # noqa: ASYNC110  lists tell of no change
        await asyncio.sleep(0.05)


def status(client: httpx.Client, task: str) -> str:
    return str(client.get(f"{TASKS}/{task}").json()["status"])
