"""Loads from storage and from the system's cache are told apart by what was read."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bitinglip.scheduling.models.restarts import RestartBudget
from bitinglip.scheduling.models.state import ModelState, Replica
from model_store.manifest import Manifest
from workers.protocol import CopyProgress, LoadProgress, Ready
from workers.worker import Worker

GB = 1_000_000_000


def model(weights: int) -> ModelState:
    manifest = Manifest(
        name="m",
        kind="text",
        engine="text",
        weight_bytes=weights,
        source="test",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    return ModelState(manifest, RestartBudget(3, 60.0))


def load(state: ModelState, seconds: float, *, storage: int, before: int = 0) -> None:
    replica = Replica("m", 0, {"cpu": 1}, began=0.0)
    replica.storage_bytes = before
    worker = SimpleNamespace(ready=Ready(slots=1, storage_bytes=storage))
    state.loaded(replica, cast("Worker", worker), 1, now=seconds)


def test_load_times_are_kept_apart_by_where_the_files_came_from() -> None:
    state = model(10 * GB)
    load(state, 270.0, storage=9 * GB)
    load(state, 7.0, storage=0)
    assert state.load_times == {"storage": 270.0, "cache": 7.0}
    load(state, 250.0, storage=GB, before=8 * GB)  # slow storage is read in sequence first
    assert state.load_times == {"storage": 250.0, "cache": 7.0}


@pytest.mark.parametrize(
    ("weights", "storage", "source"),
    [(10, 6, "storage"), (10, 5, "cache"), (10, 0, "cache"), (0, 0, "cache"), (0, 9, "cache")],
)
def test_load_is_from_storage_if_most_of_the_weights_were_read_there(
    weights: int, storage: int, source: str
) -> None:
    state = model(weights * GB)
    load(state, 1.0, storage=storage * GB)
    assert list(state.load_times) == [source]


def test_load_times_are_without_the_copying_to_a_node_that_went_before() -> None:
    state, replica = model(GB), Replica("m", 0, {"n1:cpu": 1}, began=0.0)
    state.replicas[0] = replica
    worker = Worker(cast("Any", None), "loading", "m/0")
    for done in (25, 100):
        fraction = worker.note_progress(CopyProgress("n1", done, 100))
        replica.progressed(fraction, worker.copying, now=float(done))
        if done < 100:
            assert (replica.progress, replica.copying) == (0.25, CopyProgress("n1", 25, 100))
            assert state.load_eta(25.0) == 75.0
    assert replica.copying is None
    replica.progressed(worker.note_progress(LoadProgress(0.5)), worker.copying, now=103.0)
    worker.ready = Ready(slots=1)
    state.loaded(replica, worker, 1, now=106.0)
    assert state.load_times == {"cache": 6.0}
