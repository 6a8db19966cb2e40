"""A server whose models run on the nodes of a Ray cluster, all on this machine."""

import contextlib
import json
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.api_server import ADMIN, Served, serve
from tests.support.gateways import running_pair
from tests.support.http_client import NATIVE
from tests.support.postgres import PostgresServer
from tests.support.redis import RedisServer
from tests.support.server import Server
from tests.support.sse import STREAM_END, SseEvent, iter_events
from tests.support.wait import eventually

pytestmark = pytest.mark.long_file
CHAT = "/v1/chat/completions"
MODEL = {
    "engine": "fake",
    "replicas": 3,
    "preload": True,
    "fake": {"memory_bytes": 5_000_000_000, "tokens_per_second": 10},
}
CARD = {"name": "card", "memory_bytes": 8_000_000_000}
SMALL = {"num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False}
START_SECONDS = 180


@pytest.fixture(scope="module")
def nodes(postgres: PostgresServer, redis: RedisServer) -> Iterator[Any]:
    """Provide three nodes of Ray; when the tests are over, no process of theirs may be left.

    The services, which a test needs, start before them.
    """
    del postgres, redis
    from ray.cluster_utils import Cluster

    before = set(psutil.Process().children(recursive=True))
    # Sockets lie there, whose paths may have 107 characters.
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="r") as short:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_TMPDIR", short)
        cluster = Cluster(initialize_head=True, head_node_args=SMALL)
        try:
            cluster.extra = [cluster.add_node(**SMALL) for _ in range(2)]
            yield cluster
        finally:
            cluster.shutdown()
            with contextlib.suppress(psutil.NoSuchProcess):
                eventually(lambda: not [each for each in _all_below() if _is_left(each, before)])


@pytest.fixture(scope="module")
def served(nodes: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("served")
    ray = {"address": nodes.address, "ports": "0", "folder": str(root / "on-nodes")}
    workers = {"launcher": "ray", "ray": {**ray, "start_timeout": START_SECONDS}}
    with serve(
        root,
        real=True,
        workers=workers,
        devices={"fake": [CARD]},
        models={"spread": MODEL},
    ) as server:
        yield server


def complete(nodes: Any) -> None:
    """Add nodes until there are three, the head's with them: a test before has ended one."""
    while len(nodes.extra) < 2:
        nodes.extra.append(nodes.add_node(**SMALL))


def status(served: Served) -> dict[str, Any]:
    answer = httpx.get(f"{served.url}/api/v1/cluster/status", headers=served.headers(ADMIN))
    found: dict[str, Any] = answer.json()
    return found


def unwell(served: Served) -> list[dict[str, Any]]:
    return [each for each in status(served)["nodes"] if each["state"] != "well"]


def reason(served: Served, node: str) -> str:
    """Say why a node is not used."""
    return str({each["id"]: each["reason"] for each in status(served)["nodes"]}[node])


def workers(served: Served) -> list[dict[str, Any]]:
    answer = httpx.get(f"{served.url}/api/v1/workers", headers=served.headers(ADMIN))
    found: list[dict[str, Any]] = answer.json()["data"]
    return [each for each in found if each["state"] in ("ready", "busy")]


def places(served: Served) -> set[str]:
    """Return the nodes on which the model runs."""
    return {device.partition(":")[0] for each in workers(served) for device in each["devices"]}


def asked(words: int, **fields: Any) -> dict[str, Any]:
    content = " ".join(["x"] * words)
    return {"model": "spread", "messages": [{"role": "user", "content": content}], **fields}


def test_ray_nodes_share_a_model_and_a_node_that_dies_costs_no_request_without_output(
    nodes: Any, served: Served
) -> None:
    complete(nodes)
    eventually(lambda: len(places(served)) == 3, seconds=START_SECONDS)
    lost_before = {each["id"] for each in unwell(served)}
    headers = served.headers(ADMIN)

    def quiet(_: int) -> int:
        body = asked(20, max_tokens=20)
        answer = httpx.post(served.url + CHAT, json=body, headers=headers, timeout=120)
        return answer.status_code

    def streamed(_: int) -> list[SseEvent]:
        """Return the ends of a stream, of which there must be one."""
        body = asked(20, max_tokens=20, stream=True)
        url = served.url + CHAT
        with httpx.stream("POST", url, json=body, headers=headers, timeout=120) as answer:
            events = list(iter_events(answer.iter_lines()))
        return [each for each in events if each == STREAM_END or "error" in each[1]]

    with ThreadPoolExecutor(18) as pool:
        streams = [pool.submit(streamed, number) for number in range(6)]
        eventually(lambda: sum(each["in_flight"] for each in workers(served)) == 6)
        others = [pool.submit(quiet, number) for number in range(12)]
        eventually(lambda: sum(each["in_flight"] for each in workers(served)) == 18)
        nodes.remove_node(nodes.extra.pop())
        assert [each.result() for each in others] == [200] * 12
        ends = [each.result() for each in streams]
    assert {len(each) for each in ends} == {1}, "each request ends once"
    eventually(lambda: served.in_flight == 0)
    (lost,) = [each for each in unwell(served) if each["id"] not in lost_before]
    assert lost["reason"], "from the connection's end on; Ray's own words come later"
    eventually(lambda: "has left the cluster" in reason(served, lost["id"]))


def test_ray_starts_an_agent_again_that_was_killed(served: Served) -> None:
    eventually(lambda: len(places(served)) == 2, seconds=60)
    agents = [each for each in _all_below() if "workers.agent" in each.cmdline()]
    assert len(agents) == 2
    agents[0].kill()
    eventually(lambda: len(places(served)) == 1)
    eventually(lambda: len(places(served)) == 2, seconds=60)


def _is_left(process: psutil.Process, before: set[psutil.Process]) -> bool:
    """Return True for a process that is new and does not start the servers of all tests."""
    return process not in before and "tests.support.command_forks" not in process.cmdline()


def _all_below() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def replicas(server: Server) -> list[str]:
    """Return the devices that a gateway's models run on."""
    with server.client() as client:
        found = client.get("/api/v1/workers").json()["data"]
    return [d for each in found if each["state"] in ("ready", "busy") for d in each["devices"]]


def echoed(server: Server, words: int = 2) -> int:
    body = {"model": "demo-echo", "prompt": " ".join(["x"] * words), "max_tokens": words}
    with server.client() as client:
        return client.post(NATIVE, json=body).status_code


def test_gateways_share_the_nodes_of_one_cluster_and_one_that_is_killed_leaves_its_room(
    nodes: Any, postgres: PostgresServer, redis: RedisServer, tmp_path: Path
) -> None:
    complete(nodes)
    ray = {
        "address": nodes.address,
        "ports": "0",
        "folder": str(tmp_path / "on-nodes"),
        "models": "pull",  # each in a store of its own: the nodes keep one copy for both
    }
    own = {
        "redis.url": redis.url,
        "devices.fake": [CARD],
        "workers.launcher": "ray",
        "workers.ray.start_timeout": START_SECONDS,
        **{f"workers.ray.{name}": value for name, value in ray.items()},
        "models.demo-echo.replicas": 3,
        "models.demo-echo.preload": True,
        "models.demo-echo.fake.memory_bytes": 5_000_000_000,
        "models.demo-echo.fake.tokens_per_second": 10,
    }
    told = (f"{name}={json.dumps(value)}" for name, value in own.items())
    settings = [part for each in told for part in ("--set", each)]
    with running_pair(tmp_path, postgres.make(), *settings) as pair:
        one, two = pair.servers
        # The first has a replica on each node until the second asks for room, which has one then.
        eventually(lambda: replicas(two), seconds=START_SECONDS)
        eventually(lambda: len(replicas(one)) == 2)
        assert len({*replicas(one), *replicas(two)}) == 3
        assert [echoed(each) for each in pair.servers] == [200, 200]
        theirs = [each["elsewhere_bytes"] for each in two.status()["devices"]]
        assert sorted(theirs) == [0, 5_000_000_000, 5_000_000_000]
        copies = (tmp_path / "on-nodes/models/trees").iterdir()
        (copy,) = [each for each in copies if not each.name.startswith("lent-")]
        assert len(list((copy / "origins").iterdir())) == 2
        one.process.send_signal(signal.SIGKILL)
        eventually(lambda: len(replicas(two)) == 3, seconds=60)
        with ThreadPoolExecutor(12) as pool:
            others = [pool.submit(echoed, two, 20) for _ in range(12)]
            eventually(lambda: two.status()["in_flight"] == 12)
            nodes.remove_node(nodes.extra.pop())
            assert [each.result() for each in others] == [200] * 12
        eventually(two.idle)
