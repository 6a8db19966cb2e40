"""Two gateways whose agents have a node's folder in common: real agents and workers, no Ray."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bitinglip import errors
from bitinglip.scheduling.models import shared_nodes
from tests.support.cluster import AgentProcess, StaticAgents, cluster_of
from tests.support.left_processes import no_process_left
from tests.support.scheduling_rig import Rig, answer, idle, job
from tests.support.wait import until
from workers.nodes.folder import AgentFolder
from workers.nodes.models.source import ModelSource

MOST = 5_000_000_000  #: bytes; a node's card has 8
LITTLE = 2_000_000_000
NODES = ("n1",)


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    with no_process_left():
        yield


@dataclass
class Gateway:
    """Holds a gateway's scheduling, and its agents by node."""

    rig: Rig
    agents: dict[str, AgentProcess]

    def loaded(self) -> set[str]:
        """Return the models that are ready."""
        return {each.model for each in self.rig.manager.replicas() if each.state == "ready"}

    def elsewhere(self) -> int:
        """Return the bytes that it shows as reserved by other gateways."""
        return sum(each.elsewhere_bytes for each in self.rig.operations.devices())


Test = Callable[[Gateway, Gateway], Awaitable[None]]


@contextlib.asynccontextmanager
async def gateway(
    root: Path,
    agents: dict[str, AgentProcess],
    models: dict[str, Any],
    source: ModelSource | None = None,
) -> Any:
    static = StaticAgents(agents)
    async with cluster_of(root, static, source=source) as cluster:
        fakes = {name: {"engine": "fake", **own} for name, own in models.items()}
        workers = {"heartbeat_timeout": 20, "spare": False}
        rig = Rig(root, {"models": fakes, "workers": workers}, cluster, cluster.devices)
        watch = [asyncio.create_task(rig.operations.watch()), asyncio.create_task(_look(rig))]
        try:
            yield Gateway(rig, static.agents)
        finally:
            for task in watch:
                task.cancel()
            await rig.operations.close()


async def _look(rig: Rig) -> None:
    while True:
        await rig.operations.sample_devices()
        await asyncio.sleep(0.2)


def with_two(
    root: Path,
    test: Test,
    first: dict[str, Any],
    second: dict[str, Any],
    nodes: tuple[str, ...] = NODES,
) -> None:
    """Run a test on two gateways, each with an agent of its own on each node."""

    async def run(a: dict[str, AgentProcess], b: dict[str, AgentProcess]) -> None:
        async with (
            asyncio.timeout(90),
            gateway(root / "a", a, first) as one,
            gateway(root / "b", b, second) as two,
        ):
            await test(one, two)
            await idle(one.rig)
            await idle(two.rig)

    with contextlib.ExitStack() as stack:

        def started(home: str) -> dict[str, AgentProcess]:
            found = {}
            (root / home).mkdir()
            for name in nodes:
                models = root / home / "models"
                found[name] = AgentProcess(root / f"on-{name}", models, node=name)
                stack.callback(found[name].stop)
            return found

        asyncio.run(run(started("a"), started("b")))


def with_all(root: Path, test: Callable[[list[Gateway]], Awaitable[None]], *models: Any) -> None:
    """Run a test on as many gateways as there are sets of models, on one node."""

    async def run(agents: list[AgentProcess]) -> None:
        async with asyncio.timeout(90), contextlib.AsyncExitStack() as stack:
            all_of_them = [
                await stack.enter_async_context(gateway(root / f"g{n}", {"n1": agent}, own))
                for n, (agent, own) in enumerate(zip(agents, models, strict=True))
            ]
            await test(all_of_them)
            for each in all_of_them:
                await idle(each.rig)

    with contextlib.ExitStack() as stack:
        agents = []
        for number in range(len(models)):
            (root / f"g{number}").mkdir()
            agents.append(AgentProcess(root / "on-n1", root / f"g{number}" / "models", node="n1"))
            stack.callback(agents[-1].stop)
        asyncio.run(run(agents))


def fake(size: int, **own: Any) -> dict[str, Any]:
    return {"fake": {"memory_bytes": size, "tokens_per_second": 50}, **own}


def test_two_gateways_that_load_at_once_share_a_card_and_give_up_idle_models(
    tmp_path: Path,
) -> None:
    async def test(a: Gateway, b: Gateway) -> None:
        highest = 0

        async def watch() -> None:
            nonlocal highest
            while True:
                highest = max(highest, len(a.loaded()) + len(b.loaded()))
                await asyncio.sleep(0.01)

        watching = asyncio.create_task(watch())
        both = [answer(each.rig, job("one two", 2, model=f"m{n}")) for n, each in enumerate((a, b))]
        assert await asyncio.gather(*both) == ["one two"] * 2, "the one that waited had its turn"
        watching.cancel()
        assert highest == 1, "never both, which would be more than there is"
        holder, other = (a, b) if a.loaded() else (b, a)
        assert not other.loaded()
        await until(lambda: other.elsewhere() == MOST)
        assert holder.elsewhere() == 0
        assert [each.elsewhere for each in other.rig.operations.samples()] == [MOST]
        (device,) = other.rig.operations.devices()
        assert (device.foreign_bytes, device.reserved_bytes) == (0, 0)
        assert device.free_bytes == 8_000_000_000 - MOST

    with_two(tmp_path, test, {"m0": fake(MOST)}, {"m1": fake(MOST)})


def test_model_that_another_gateway_has_pinned_is_not_given_up_until_it_is_unloaded(
    tmp_path: Path,
) -> None:
    async def test(a: Gateway, b: Gateway) -> None:
        await a.rig.manager.load("pinned")
        await until(lambda: b.elsewhere() == MOST)
        await until(lambda: b.rig.manager.facts.shared.elsewhere("n1:fake0").pinned == MOST)
        with pytest.raises(errors.ModelDoesNotFit) as why:
            await answer(b.rig, job("one", 1, model="m"))
        assert why.value.retry_after is not None
        assert await answer(b.rig, job("one", 1, model="little")) == "one", "beside it"
        await a.rig.manager.unload("pinned")
        await until(lambda: b.elsewhere() == 0)
        assert await answer(b.rig, job("one", 1, model="m")) == "one"

    models = {"m": fake(MOST), "little": fake(LITTLE)}
    with_two(tmp_path, test, {"pinned": fake(MOST, pin=True)}, models)


def test_model_in_use_by_another_gateway_is_waited_for_and_ends_no_stream(tmp_path: Path) -> None:
    async def test(a: Gateway, b: Gateway) -> None:
        words = " ".join(["x"] * 60)
        with a.rig.dispatcher.open(job(words, 60, model="m0", stream=True)) as streamed:
            await until(lambda: any(each.in_flight for each in a.rig.manager.replicas()))
            waiting = asyncio.create_task(answer(b.rig, job("one", 1, model="m1")))
            await until(lambda: b.rig.manager.shortage > 0)
            await streamed.result()
            assert a.loaded() == {"m0"}
            assert not b.loaded()
        assert await waiting == "one"
        assert not a.loaded()

    with_two(tmp_path, test, {"m0": fake(MOST)}, {"m1": fake(MOST)})


def test_three_gateways_give_up_one_model_for_a_wish_of_one_model(tmp_path: Path) -> None:
    async def test(gateways: list[Gateway]) -> None:
        one, two, wisher = gateways
        for each, name in ((one, "a"), (two, "b"), (one, "c"), (two, "d")):
            await each.rig.manager.load(name)
        await until(lambda: wisher.elsewhere() == 4 * LITTLE)
        assert await answer(wisher.rig, job("one", 1, model="m")) == "one"
        await asyncio.sleep(3)  # in which what has been wished for would go on to be freed
        assert len(one.loaded()) + len(two.loaded()) == 3
        assert wisher.loaded() == {"m"}

    first, second = ({name: fake(LITTLE) for name in names} for names in ("ac", "bd"))
    with_all(tmp_path, test, first, second, {"m": fake(LITTLE)})


def test_refused_gateway_loads_on_another_node(tmp_path: Path) -> None:
    async def test(a: Gateway, b: Gateway) -> None:
        both = [each.rig.manager.load(f"m{n}") for n, each in enumerate((a, b))]
        await asyncio.gather(*both)
        devices = {d for each in (a, b) for r in each.rig.manager.replicas() for d in r.devices}
        assert devices == {"n1:fake0", "n2:fake0"}

    first, second = ({f"m{n}": fake(MOST, pin=True)} for n in range(2))
    with_two(tmp_path, test, first, second, nodes=("n1", "n2"))


def test_agent_that_is_killed_frees_what_its_gateway_held(tmp_path: Path) -> None:
    async def test(a: Gateway, b: Gateway) -> None:
        await a.rig.manager.load("m0")
        await until(lambda: b.elsewhere() == MOST)
        a.agents["n1"].process.kill()
        await until(lambda: b.elsewhere() == 0)
        assert await answer(b.rig, job("one", 1, model="m1")) == "one"
        await until(lambda: not a.loaded())

    with_two(tmp_path, test, {"m0": fake(MOST, pin=True)}, {"m1": fake(MOST)})


def test_node_that_refuses_memory_for_long_fails_the_load_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_nodes, "_PATIENCE", 1.5)

    async def test(a: Gateway, b: Gateway) -> None:
        folder = AgentFolder(tmp_path / "on-n1")  # of an agent that stands still
        (folder.root / "ledger").write_bytes(b"half a pa")
        with pytest.raises(errors.ModelLoadFailed, match="what another gateway's agent has"):
            await answer(a.rig, job("one", 1, model="m0"))
        assert not [each for each in a.rig.operations.workers() if each.state == "failed"]
        folder.remove()
        assert await answer(b.rig, job("one", 1, model="m1")) == "one"

    with_two(tmp_path, test, {"m0": fake(MOST)}, {"m1": fake(MOST)})
