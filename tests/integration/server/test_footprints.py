"""Learned footprints: they are used, survive restarts, and are close to the real memory."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bitinglip.db.database import Database
from bitinglip.scheduling.placement.estimate import (
    LoadConfig,
    estimate,
)
from bitinglip.scheduling.placement.footprints import Footprints
from model_store.demo import make_demo_models
from model_store.manifest import Manifest
from model_store.store import ModelStore
from tests.support.server import Server, running_server
from tests.support.wait import eventually

MODEL = Manifest(
    name="m",
    kind="text",
    engine="text",
    weight_bytes=1_000_000_000,
    dtype="bfloat16",
    source="test",
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)
CARD = LoadConfig("cuda")


def test_footprint_that_was_measured_replaces_the_estimate_and_survives_a_restart(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        db = await Database.open(tmp_path / "b.db")
        footprints = await Footprints.open(db)
        estimated = footprints.need(MODEL, CARD)
        assert (estimated.bytes, estimated.measured) == (estimate(MODEL, CARD).total, False)
        footprints.observe(MODEL, CARD, memory_bytes=6_000_000_000, load_seconds=4.0)
        footprints.observe(MODEL, CARD, memory_bytes=5_000_000_000)  # the highest counts
        await footprints.flush()
        again = (await Footprints.open(db)).need(MODEL, CARD)
        assert (again.bytes, again.measured, again.load_seconds) == (6_120_000_000, True, 4.0)
        assert footprints.need(MODEL, LoadConfig("cuda", max_batch=1)).measured is False
        await db.close()

    asyncio.run(test())


def test_footprint_below_the_cache_is_ignored() -> None:
    footprints = Footprints()
    footprints.observe(MODEL, CARD, memory_bytes=estimate(MODEL, CARD).cache)
    assert not footprints.need(MODEL, CARD).measured


def test_footprint_grows_after_running_out_of_memory() -> None:
    footprints = Footprints()
    footprints.raise_minimum(MODEL, CARD, 9_000_000_000)
    assert footprints.need(MODEL, CARD).bytes == 9_000_000_000


def test_footprint_of_a_fake_model_is_what_it_pretends() -> None:
    footprints, load_config = Footprints(), LoadConfig("fake", claimed_bytes=7)
    footprints.observe(MODEL, load_config, memory_bytes=100, load_seconds=1.0)
    footprints.raise_minimum(MODEL, load_config, 100)
    assert footprints.need(MODEL, load_config).bytes == 7


@pytest.fixture(scope="module")
def fresh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Provide a server whose workers are processes with the libraries of their own engine only."""
    home = tmp_path_factory.mktemp("fresh") / "home"
    words = ("--set", "models.demo-text.dtype=float32", "--set", "workers.threads=1")
    with running_server(home, *words) as server:
        yield server


@pytest.mark.parametrize("model", ["demo-text", "demo-speech"])
def test_estimate_of_a_real_model_is_near_what_it_takes(fresh_server: Server, model: str) -> None:
    with fresh_server.client() as client:
        client.post(f"/api/v1/models/{model}/load").raise_for_status()
        answer = client.get(f"/api/v1/models/{model}/fit").json()
        assert answer["verdict"] == "loaded"

        def measured() -> int:
            return int(fresh_server.worker(model)["memory_bytes"])

        eventually(lambda: measured() > 300_000_000)
    files = ModelStore(fresh_server.home / "models").get(model)
    estimated = estimate(files, LoadConfig("cpu", dtype="float32")).total
    assert measured() == pytest.approx(estimated, rel=0.25)


def test_estimate_counts_weights_from_the_files(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    make_demo_models(store, ["demo-text"])
    manifest = store.get("demo-text")
    assert estimate(manifest, LoadConfig("cuda", dtype="float32")).weights == manifest.weight_bytes
    assert estimate(manifest, LoadConfig("cuda")).weights == manifest.weight_bytes // 2
