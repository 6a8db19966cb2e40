"""Workers under agents of other machines, which are processes of this one."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil

from tests.support.cluster import StaticAgents, agents, cluster_of
from tests.support.scheduling_rig import Rig, answer, idle, job
from tests.support.wait import until
from workers.nodes.cluster import Cluster

Test = Callable[[Rig, Cluster, StaticAgents], Awaitable[None]]


def with_nodes(
    root: Path, test: Test, models: dict[str, Any], *names: str, **options: Any
) -> None:
    """Run a test on scheduling over agents of these names; its books must balance."""
    workers = {"heartbeat_timeout": 20, "spare": False, **options}

    async def run(static: StaticAgents) -> None:
        async with cluster_of(root, static) as cluster:
            values = {"models": models, "workers": workers}
            rig = Rig(root, values, cluster, cluster.devices)  # type: ignore[arg-type]
            watch = [asyncio.create_task(rig.operations.watch())]
            watch.append(asyncio.create_task(_sample(rig)))
            try:
                async with asyncio.timeout(60):
                    await test(rig, cluster, static)
                    await idle(rig)
            finally:
                for task in watch:
                    task.cancel()
                await rig.operations.close()

    with agents(root, *names) as there:
        asyncio.run(run(StaticAgents(there)))


async def _sample(rig: Rig) -> None:
    while True:
        await rig.operations.sample_devices()
        await asyncio.sleep(0.2)


def test_models_are_spread_over_nodes_and_killed_node_s_requests_run_elsewhere(
    tmp_path: Path,
) -> None:
    async def test(rig: Rig, cluster: Cluster, static: StaticAgents) -> None:
        assert [each.id for each in cluster.devices.list()] == ["n1:fake0", "n2:fake0"]
        answers = [answer(rig, job(f"j{i}", 1, model="a")) for i in range(8)]
        assert await asyncio.gather(*answers) == [f"j{i}" for i in range(8)]
        await until(lambda: len(rig.manager.serving("a")) == 2)
        held = {each.worker.id: list(each.devices) for each in rig.manager.serving("a")}
        assert sorted(held.values()) == [["n1:fake0"], ["n2:fake0"]]
        static.agents["n1"].process.kill()
        answers = [answer(rig, job(f"k{i}", 1, model="a")) for i in range(8)]
        assert await asyncio.gather(*answers) == [f"k{i}" for i in range(8)]

    models = {"a": {"engine": "fake", "replicas": 2, "fake": {"memory_bytes": 5_000_000_000}}}
    with_nodes(tmp_path, test, models, "n1", "n2")
    assert not [each for each in psutil.Process().children(recursive=True)]
