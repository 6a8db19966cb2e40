"""Nodes whose disks have no room for a model: real agents and workers, no Ray."""

import asyncio
import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitinglip import errors
from bitinglip.cluster import model_source
from bitinglip.home import Home
from bitinglip.scheduling.models import shared_nodes
from bitinglip.scheduling.models.manager import ModelManager
from model_store.demo import make_fake_models
from model_store.store import ModelStore
from tests.integration.nodes.test_killed_gateway import LARGER, list_weights, places, weights_of
from tests.integration.nodes.test_shared_nodes import MOST, fake, gateway
from tests.support.cluster import CARD, AgentProcess
from tests.support.left_processes import no_process_left

SIZES = {"big": 1 << 20, "huge": 1 << 30}
ROOM = {"n1": 1 << 19, "n2": 1 << 22}
MODELS = {"big": fake(MOST), "huge": fake(MOST), "wide": fake(CARD[1] + 1)}  # than the card of n1


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    with no_process_left():
        yield


def home_of(root: Path) -> Home:
    """Make a home with fake models, two of which have files that are large, and empty."""
    home = Home(root)
    home.create()
    make_fake_models(ModelStore(home.models), list(MODELS))
    for model, size in SIZES.items():
        with weights_of(home, model).open("wb") as file:
            file.truncate(size)
    list_weights(home, hashlib.sha256(bytes(SIZES["big"])).hexdigest())
    list_weights(home, "f" * 64, "huge")  # it is never read
    return home


def full_for(manager: ModelManager) -> dict[str, frozenset[str]]:
    return {each.node: each.full_for for each in manager.facts.capacities()}


async def load_all(home: Home, started: dict[str, AgentProcess]) -> None:
    async with asyncio.timeout(30), gateway(home.root, started, MODELS, model_source(home)) as it:
        manager = it.rig.manager
        await manager.load("big")
        assert places(manager) == {"big": ["n2:fake0"]}, "where there is room, by what nodes tell"
        assert full_for(manager) == {"n1": frozenset(), "n2": frozenset()}
        await manager.unload("big")

        await manager.load("wide")
        await manager.load("big")
        assert places(manager) == {"big": ["n2:fake0"]}, (
            "not on n1, which was tried: it evicts nothing"
        )
        assert full_for(manager) == {"n1": {"big"}, "n2": frozenset()}
        await manager.unload("big")

        with pytest.raises(errors.DiskFull, match="models_max_bytes"):
            await manager.load("huge")
        assert full_for(manager) == {"n1": {"big", "huge"}, "n2": {"huge"}}, "each was tried"
        with pytest.MonkeyPatch.context() as patch:
            # As if each load took longer than a disk is avoided: it is not tried in turn for ever.
            patch.setattr(shared_nodes, "_FULL_SECONDS", 0.0)
            with pytest.raises(errors.DiskFull):
                await manager.load("huge")


def test_model_is_loaded_where_its_files_have_room_and_elsewhere_after_a_disk_that_was_full(
    tmp_path: Path,
) -> None:
    home = home_of(tmp_path / "home")
    with contextlib.ExitStack() as stack:
        started = {}
        for name, card in (("n1", CARD), ("n2", LARGER)):
            started[name] = AgentProcess(
                tmp_path / f"on-{name}",
                home.models,
                fake=(card,),
                store=str(tmp_path / f"copies-{name}"),
                store_max_bytes=ROOM[name],
            )
            stack.callback(started[name].stop)
        asyncio.run(load_all(home, started))
