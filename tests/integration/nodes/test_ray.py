"""A server whose models run on the nodes of a Ray cluster, all on this machine."""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest

from tests.support.api_server import ADMIN, Served, serve
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
START_SECONDS = 180


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """Provide three nodes of Ray; when the tests are over, no process of theirs may be left."""
    from ray.cluster_utils import Cluster

    before = set(psutil.Process().children(recursive=True))
    small = {"num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False}
    # Sockets lie there, whose paths may have 107 characters.
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="r") as short:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_TMPDIR", short)
        cluster = Cluster(initialize_head=True, head_node_args=small)
        try:
            cluster.extra = [cluster.add_node(**small) for _ in range(2)]
            yield cluster
        finally:
            cluster.shutdown()
            with contextlib.suppress(psutil.NoSuchProcess):
                eventually(lambda: not set(psutil.Process().children(recursive=True)) - before)


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


def status(served: Served) -> dict[str, Any]:
    answer = httpx.get(f"{served.url}/api/v1/cluster/status", headers=served.headers(ADMIN))
    found: dict[str, Any] = answer.json()
    return found


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
    eventually(lambda: len(places(served)) == 3, seconds=START_SECONDS)
    assert {each["state"] for each in status(served)["nodes"]} == {"well"}
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
    lost = [each for each in status(served)["nodes"] if each["state"] != "well"]
    assert len(lost) == 1
    assert re.search("does not answer|has left the cluster", lost[0]["reason"])


def test_ray_starts_an_agent_again_that_was_killed(served: Served) -> None:
    eventually(lambda: len(places(served)) == 2, seconds=60)
    agents = [each for each in _all_below() if "workers.agent" in each.cmdline()]
    assert len(agents) == 2
    agents[0].kill()
    eventually(lambda: len(places(served)) == 1)
    eventually(lambda: len(places(served)) == 2, seconds=60)


def _all_below() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)
