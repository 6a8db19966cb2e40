"""Workers under agents of other machines, which are processes of this one."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from bitinglip import errors
from tests.support.cluster import CARD, SECRET, AgentProcess, StaticAgents, agents, cluster_of
from tests.support.left_processes import no_process_left
from tests.support.scheduling_rig import Rig, answer, idle, job
from tests.support.wait import eventually, until
from workers.folders import WorkFolders
from workers.framing import BadFrame
from workers.nodes import link as links
from workers.nodes.cluster import Cluster
from workers.nodes.handshake import NotTrusted
from workers.nodes.link import Link, LinkLost, connect
from workers.nodes.messages import PROTOCOL, AgentConfig, Kind, OpenNode, OpenWorker
from workers.nodes.node import Address, Node
from workers.protocol import Failed

Test = Callable[[Rig, StaticAgents], Awaitable[None]]
TWO = {"a": {"replicas": 2, "fake": {"memory_bytes": 5_000_000_000, "tokens_per_second": 15}}}


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    with no_process_left():
        yield


def with_nodes(
    root: Path,
    test: Test,
    models: dict[str, Any],
    *names: str,
    heartbeat_timeout: float = 10,
    models_of: Path | None = None,
    wait_seconds: float = 20,
    **config: Any,
) -> None:
    """Run a test on scheduling over agents of these names; its books must balance."""

    async def run(static: StaticAgents) -> None:
        async with cluster_of(
            root, static, heartbeat_timeout=heartbeat_timeout, wait_seconds=wait_seconds
        ) as cluster:
            workers = {"heartbeat_timeout": 20, "spare": False}
            fakes = {name: {"engine": "fake", **own} for name, own in models.items()}
            rig = Rig(root, {"models": fakes, "workers": workers}, cluster, cluster.devices)
            watch = [asyncio.create_task(rig.operations.watch()), asyncio.create_task(_look(rig))]
            try:
                async with asyncio.timeout(60):
                    await test(rig, static)
                    await idle(rig)
            finally:
                for task in watch:
                    task.cancel()
                await rig.operations.close()

    with agents(models_of or root, *names, **config) as there:
        asyncio.run(run(StaticAgents(there)))


async def _look(rig: Rig) -> None:
    while True:
        await rig.operations.sample_devices()
        await asyncio.sleep(0.2)


def nodes_of(rig: Rig, model: str) -> list[str]:
    found = [device for each in rig.manager.serving(model) for device in each.devices]
    return sorted(found)


def test_nodes_share_the_replicas_and_a_killed_one_s_requests_end_once_elsewhere(
    tmp_path: Path,
) -> None:
    async def test(rig: Rig, static: StaticAgents) -> None:
        rig.manager.preload("a")
        await until(lambda: nodes_of(rig, "a") == ["n1:fake0", "n2:fake0"])
        words = " ".join("x" * 20)
        with rig.dispatcher.open(job(words, 20, model="a", stream=True)) as streamed:
            batches = streamed.batches()
            while not streamed.output_seen:
                await anext(batches)
            first = rig.manager.serving("a")
            (hit,) = [each for each in first if each.id == streamed.worker_id]
            quiet = [job(words, 20, model="a") for _ in range(6)]
            waiting = [asyncio.create_task(answer(rig, each)) for each in quiet]
            await until(lambda: sum(each.in_flight for each in first) == 7)
            assert hit.in_flight > 1, "some of those without output are there, too"
            (device,) = hit.devices
            node = device.partition(":")[0]
            static.agents[node].process.kill()
            ended = [each async for batch in batches for each in batch if isinstance(each, Failed)]
            assert [each.code for each in ended] == ["WORKER_CRASHED"]
            assert f"lost its node {node}" in ended[0].message or "connection" in ended[0].message
        assert len(await asyncio.gather(*waiting)) == 6, "those without output run elsewhere"
        lost = {each.id: each.state for each in rig.operations.devices()}
        assert lost[f"{node}:fake0"] == "doubtful"

    with_nodes(tmp_path, test, TWO, "n1", "n2")


def test_node_that_is_silent_is_lost_by_its_missing_heartbeats_and_used_again(
    tmp_path: Path,
) -> None:
    async def test(rig: Rig, static: StaticAgents) -> None:
        assert await answer(rig, job("one", 1, model="a")) == "one"
        agent = static.agents["n1"].process
        agent.send_signal(signal.SIGSTOP)
        with rig.dispatcher.open(job("two", 1, model="a")) as event_log:
            await until(lambda: not rig.manager.serving("a"))
            (device,) = rig.operations.devices()
            assert "has been silent" in (device.reason or "")
            agent.send_signal(signal.SIGCONT)
            await event_log.result()

    with_nodes(tmp_path, test, {"a": {}}, "n1", heartbeat_timeout=1)


def test_processor_that_joins_moves_no_model_as_a_card_would(tmp_path: Path) -> None:
    async def test(rig: Rig, static: StaticAgents) -> None:
        assert await answer(rig, job("one", 1, model="a")) == "one"
        (worker,) = rig.operations.workers()
        late = await asyncio.to_thread(
            AgentProcess, tmp_path / "on-n2", tmp_path / "models", fake=()
        )
        try:
            static.agents["n2"] = late
            await until(lambda: len(rig.operations.devices()) == 2)
            await rig.operations.sample_devices()
            (replica,) = rig.manager.replicas()
            assert (replica.state, replica.worker and replica.worker.pid) == ("ready", worker.pid)
        finally:
            await asyncio.to_thread(late.stop)

    with_nodes(tmp_path, test, {"a": {}}, "n1", fake=())


def test_node_that_has_left_the_cluster_says_how_it_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.nodes.cluster._FIND_SECONDS", 0.05)

    class Leaving(StaticAgents):
        async def find(self) -> Mapping[str, Address | str]:
            return {} if self.left else {"n1": "Ray does not reach the node"}

        left = False

    async def run() -> None:
        static = Leaving({})
        async with cluster_of(tmp_path, static, wait_seconds=0) as cluster:
            await until(lambda: "does not reach" in str(cluster.trouble))
            static.left = True
            await until(lambda: "'ray start'" in str(cluster.trouble))
            assert [each.name for each in cluster.views()] == ["n1"]

    asyncio.run(run())


def test_node_reports_crashes_as_those_of_a_worker_here(tmp_path: Path) -> None:
    async def test(rig: Rig, _: StaticAgents) -> None:
        with pytest.raises(errors.WorkerCrashed, match="code 13") as crashed:
            await answer(rig, job("!crash", 1, model="a"))
        assert crashed.value.details["quarantined"] is True, "it ended two workers"

    with_nodes(tmp_path, test, {"a": {"fake": {"faults": True}}}, "n1")


def test_node_refuses_to_load_from_outside_its_folders(tmp_path: Path) -> None:
    async def test(rig: Rig, _: StaticAgents) -> None:
        with pytest.raises(errors.ModelLoadFailed, match="node n1 may not load a from"):
            await rig.manager.load("a")

    with_nodes(tmp_path, test, {"a": {}}, "n1", models_of=tmp_path / "elsewhere")


def test_cluster_whose_start_is_to_stop_waits_for_no_node(tmp_path: Path) -> None:
    async def run() -> None:
        folders = WorkFolders(tmp_path / "work")
        cluster = Cluster(StaticAgents({}), SECRET, folders, tmp_path, heartbeat_timeout=10)
        try:
            async with asyncio.timeout(60):
                await cluster.open(3600, lambda: True)
        finally:
            await cluster.close()

    asyncio.run(run())


def test_cluster_without_a_node_says_so_in_its_errors_and_loads_once_there_is_one(
    tmp_path: Path,
) -> None:
    async def test(rig: Rig, static: StaticAgents) -> None:
        rig.manager.preload("a")
        with pytest.raises(errors.ModelDoesNotFit, match="No node of the cluster answers") as why:
            await answer(rig, job("one", 1, model="a"))
        assert why.value.retry_after is not None
        late = await asyncio.to_thread(AgentProcess, tmp_path / "late", tmp_path / "models")
        try:
            static.agents["late"] = late
            await until(lambda: nodes_of(rig, "a") == ["late:fake0"])
        finally:
            await asyncio.to_thread(late.stop)

    with_nodes(tmp_path, test, {"a": {"preload": True}}, wait_seconds=0.1)


def test_agent_refuses_a_wrong_secret_and_frames_that_are_too_long(tmp_path: Path) -> None:
    async def run(agent: AgentProcess) -> None:
        for wrong in ("another secret!!", ""):
            with pytest.raises(NotTrusted, match="another secret"):
                await connect(*agent.address, wrong)
        long = await connect(*agent.address, SECRET)
        long._writer.write(links._HEAD.pack(Kind.OPEN, 1 << 30))
        with pytest.raises(LinkLost):
            await long.receive()
        worker = await connect(*agent.address, SECRET)
        opened = OpenWorker(
            protocol=PROTOCOL, gateway="g", node="n1", name="w", engine="fake", visible_devices=""
        )
        worker.tell(Kind.OPEN, opened)
        worker.send(Kind.COMMANDS, b"\xc1")
        with pytest.raises(LinkLost):
            await _all_of(worker)
        for opening in ("node", "a kind that this version does not have"):
            node = await connect(*agent.address, SECRET)
            node.tell(Kind.OPEN, {"type": opening, "protocol": "another", "gateway": {"new": 1}})
            kind, payload = await node.receive()
            assert kind == Kind.REFUSED
            assert b"another version" in payload
            node.abort()
        still = await connect(*agent.address, SECRET)
        still.tell(Kind.OPEN, OpenNode(protocol=PROTOCOL, gateway="g"))
        assert (await still.receive())[0] in (Kind.BEAT, Kind.FACTS)
        for each in (long, worker, still):
            each.abort()

    with agents(tmp_path, "n1") as there:
        asyncio.run(run(there["n1"]))


def test_strangers_that_say_nothing_keep_no_gateway_out(tmp_path: Path) -> None:
    async def run(agent: AgentProcess) -> None:
        silent = [await asyncio.open_connection(*agent.address) for _ in range(20)]
        link = await connect(*agent.address, SECRET)
        link.tell(Kind.OPEN, OpenNode(protocol=PROTOCOL, gateway="g"))
        assert (await link.receive())[0] in (Kind.BEAT, Kind.FACTS)
        link.abort()
        for _, writer in silent:
            writer.transport.abort()
        node = Node("n1", SECRET, lambda: None)
        node.address = agent.address
        spec = OpenWorker(
            protocol=PROTOCOL, gateway="g", node="n1", name="w", engine="none", visible_devices=""
        )
        opened = await asyncio.gather(*(node.open_worker(spec) for _ in range(60)))
        assert {(await each.receive())[0] for each in opened} == {Kind.REFUSED}, "nor itself"
        for each in opened:
            each.abort()

    with agents(tmp_path, "n1") as there:
        asyncio.run(run(there["n1"]))


def test_agent_that_does_not_know_the_secret_is_not_used(tmp_path: Path) -> None:
    async def run(static: StaticAgents) -> None:
        async with cluster_of(tmp_path, static, secret="the gateway's secret") as cluster:
            (view,) = cluster.views()
            assert view.state == "refused"
            assert "secret" in (view.reason or "")
            assert cluster.devices.missing is not None
            (node,) = cluster.nodes
            opened = OpenWorker(
                protocol=PROTOCOL,
                gateway="g",
                node="n1",
                name="w",
                engine="fake",
                visible_devices="",
            )
            with pytest.raises(LinkLost):  # which is blamed on the node, not on the model
                await node.open_worker(opened)

    with agents(tmp_path, "n1") as there:
        asyncio.run(run(StaticAgents(there)))


async def _all_of(link: Link) -> None:
    while True:
        await link.receive()


_GATEWAY = """
import asyncio, sys
from workers.nodes.link import connect
from workers.nodes.messages import *
async def main():
    link = await connect("127.0.0.1", int(sys.argv[1]), sys.stdin.readline().strip())
    link.tell(Kind.OPEN, OpenWorker(
        protocol=PROTOCOL, gateway="g", node="n1", name="w", engine="fake", visible_devices=""))
    print(await link.receive(), flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def test_gateway_that_is_killed_takes_its_workers_on_nodes_along(tmp_path: Path) -> None:
    with agents(tmp_path, "n1") as there:
        agent = psutil.Process(there["n1"].process.pid)
        command = [sys.executable, "-c", _GATEWAY, str(there["n1"].address.port)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as gateway:
            assert gateway.stdin is not None
            assert gateway.stdout is not None
            gateway.stdin.write(SECRET.encode() + b"\n")
            gateway.stdin.flush()
            assert gateway.stdout.readline()
            (worker,) = agent.children()
            os.kill(gateway.pid, signal.SIGKILL)
        eventually(lambda: not worker.is_running())


_ACTOR = """
import platform, sys, time
from workers.nodes.ray_node import AgentActor
actor = AgentActor(sys.stdin.buffer.readline(), platform.python_version())
print(actor._agent.pid, flush=True)
time.sleep(600)
"""


def test_agent_ends_with_its_actor_that_is_killed_and_shows_no_secret(tmp_path: Path) -> None:
    """As `ray stop --force` kills it."""
    config = AgentConfig(
        secret=SECRET,
        folder=str(tmp_path / "on-node"),
        models=(),
        protocol=PROTOCOL,
        fake=(CARD,),
        spare=False,
        ends_with_input=True,
    )
    with subprocess.Popen(
        [sys.executable, "-c", _ACTOR],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as actor:
        assert actor.stdin is not None
        assert actor.stdout is not None
        assert actor.stderr is not None
        actor.stdin.write(msgspec.json.encode(config) + b"\n")
        actor.stdin.flush()
        agent = psutil.Process(int(actor.stdout.readline()))
        shown = [*agent.cmdline(), *agent.environ().values()]
        assert not [each for each in shown if SECRET in each]
        actor.kill()
        assert SECRET.encode() not in actor.stderr.read(), "which ends with the agent"
    eventually(lambda: not agent.is_running() or agent.status() == psutil.STATUS_ZOMBIE)


def test_frame_of_no_kind_ends_a_connection() -> None:
    with pytest.raises(BadFrame):
        links._kind(99)
