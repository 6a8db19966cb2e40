"""A gateway that is killed while it copies a model to a node: real agents and workers, no Ray."""

import asyncio
import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from bitinglip.cluster import model_source
from bitinglip.home import Home
from bitinglip.scheduling.models.manager import ModelManager
from model_store.demo import make_fake_models
from model_store.manifest import FileEntry, read_manifest, write_manifest
from model_store.store import ModelStore
from tests.integration.nodes.test_shared_nodes import MOST, fake, gateway
from tests.support.cluster import CARD, AgentProcess, StaticAgents, cluster_of
from tests.support.left_processes import no_process_left
from tests.support.wait import eventually, until
from workers.nodes import cluster
from workers.nodes.models import sender

SIZE = 16 << 20
MODELS = {"big": fake(MOST), "other": fake(MOST)}
LARGER = ("card", CARD[1] + 1_000_000_000)


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    with no_process_left():
        yield


def home_with_weights(root: Path, content: bytes) -> Home:
    """Make a home with fake models, one of which has a large file that its manifest lists too."""
    home = Home(root)
    home.create()
    make_fake_models(ModelStore(home.models), list(MODELS))
    weights_of(home).write_bytes(content)
    list_weights(home, hashlib.sha256(content).hexdigest())
    return home


def list_weights(home: Home, digest: str, model: str = "big") -> None:
    """Have the manifest of a model list its large file."""
    found = weights_of(home, model).stat()
    entry = FileEntry("weights.bin", found.st_size, digest, found.st_mtime_ns)
    manifest = read_manifest(home.models / model)
    files, total = (*manifest.files, entry), manifest.total_bytes + found.st_size
    changed = msgspec.structs.replace(manifest, files=files, total_bytes=total)
    write_manifest(home.models / model, changed)


def weights_of(home: Home, model: str = "big") -> Path:
    return home.models / model / "files/weights.bin"


def spoil_beginning(weights: Path) -> None:
    """Write over the first bytes of a file, and let it look as it did."""
    stamps = weights.stat()
    with weights.open("r+b") as file:
        file.write(bytes(1 << 16))
    os.utime(weights, ns=(stamps.st_atime_ns, stamps.st_mtime_ns))


def gateway_that_copies_slowly(home: Home, agents: dict[str, AgentProcess]) -> int:
    """Start a gateway in a process of its own, which loads the model; return its id."""
    if process := os.fork():
        return process
    try:
        sender._PIECE_BYTES = 1 << 12

        async def load() -> None:
            async with gateway(home.root, agents, MODELS, model_source(home)) as it:
                await it.rig.manager.load("big")

        asyncio.run(load())
    finally:
        os._exit(1)


async def known_at_start(home: Home, agents: dict[str, AgentProcess]) -> frozenset[str]:
    """Return what a gateway that starts knows of the copies on a node before it loads anything."""
    source = model_source(home)
    async with cluster_of(home.root, StaticAgents(agents), source=source) as opened:
        return opened.devices.copied("n2:fake0")


def places(manager: ModelManager) -> dict[str, list[str]]:
    return {each.model: list(each.devices) for each in manager.replicas()}


def test_copy_of_a_gateway_that_is_killed_is_gone_on_with_by_another_and_later_loads_go_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_FIND_SECONDS", 0.05)
    content = os.urandom(SIZE)
    first, home = (home_with_weights(tmp_path / each, content) for each in ("one", "two"))
    copies = tmp_path / "copies-n2"

    def agent(name: str, card: tuple[str, int]) -> AgentProcess:
        store = str(tmp_path / f"copies-{name}")
        return AgentProcess(tmp_path / f"on-{name}", home.models, fake=(card,), store=store)

    def come() -> int:
        return sum(each.stat().st_size for each in copies.glob("parts/*"))

    async def go_on(agents: dict[str, AgentProcess], late: AgentProcess) -> None:
        async with (
            asyncio.timeout(60),
            gateway(home.root, agents, MODELS, model_source(home)) as it,
        ):
            manager = it.rig.manager
            await manager.load("big")  # there is room: what the killed one reserved is free
            await manager.unload("big")
            it.agents["n1"] = late  # where less is left over

            def files() -> dict[str, frozenset[str]]:
                return {each.id: each.files for each in manager.facts.capacities()}

            told = {"n1:fake0": frozenset(), "n2:fake0": frozenset({"big"})}
            await until(lambda: files() == told)
            for model, device in (("other", "n1:fake0"), ("big", "n2:fake0")):
                await manager.load(model)
                assert places(manager) == {model: [device]}
                await manager.unload(model)

    there, late = agent("n2", LARGER), agent("n1", CARD)
    try:
        killed = gateway_that_copies_slowly(first, {"n2": there})
        try:
            eventually(lambda: come() > 1 << 16)
        finally:
            os.kill(killed, signal.SIGKILL)
            os.waitpid(killed, 0)
        eventually(lambda: not psutil.Process(there.process.pid).children())
        assert 1 << 16 < come() < SIZE
        spoil_beginning(weights_of(home))  # of what has come, which is not to be sent again
        asyncio.run(go_on({"n2": there}, late))
        assert asyncio.run(known_at_start(home, {"n2": there})) == {"big"}
        assert not list(copies.glob("parts/*"))
    finally:
        there.stop()
        late.stop()
