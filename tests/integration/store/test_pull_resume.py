"""Pulls that are cut and killed at random, and go on: the right bytes, none fetched twice."""

import hashlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from model_store.blobs import Blobs
from model_store.errors import PullRunning
from model_store.hub.transfer import PART
from model_store.store import ModelStore
from tests.support.hub import REPO, FakeHub, fake_hub
from tests.support.model_folders import llama, llama_tensors
from tests.support.pull_forks import pull_forks
from tests.support.pulls import WEIGHTS, Told, pulled, size_of

BIG = 3_000_000


def weights(folder: Path, seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, BIG, np.uint8)
    save_file({**llama_tensors(), "padding": noise}, folder / WEIGHTS)
    return (folder / WEIGHTS).read_bytes()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    folder = llama(tmp_path / "origin")
    weights(folder, 0)
    with fake_hub(folder) as hub:
        yield hub


def test_resume_after_30_cuts_at_random_offsets_fetches_each_byte_once(
    store: ModelStore, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_store.hub.retries.nap", lambda *_: None)
    chance = random.Random(19)
    hub.cuts[WEIGHTS] = [chance.randint(1, BIG // 16) for _ in range(30)]
    told = Told()
    pulled(store, hub, progress=told)
    assert hub.cuts[WEIGHTS] == []
    assert (store.path(REPO) / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    assert hub.sent[WEIGHTS] == len(hub.files[WEIGHTS])
    assert told.done == told.sizes


def test_resume_after_30_kills_at_random_moments_has_the_right_bytes(
    store: ModelStore, hub: FakeHub, tmp_path: Path
) -> None:
    """Each pull goes on where the disk says; what a process held in memory is at most a block."""
    chance = random.Random(19)
    hub.slow = 0.003
    kills = models = 0
    kept: list[int] = []  #: bytes of the weights on the disk when each pull began
    with pull_forks(tmp_path / "store", hub.url) as forks:
        while kills < 30 or not models:
            kept.append(part_of(store, hub))
            child = forks.start()
            if kills < 30:
                time.sleep(chance.uniform(0, 0.2))
                with suppress(ProcessLookupError):  # on a quick machine it may have ended
                    os.kill(child, signal.SIGKILL)
            ended = forks.wait()
            kills += ended == -signal.SIGKILL
            assert len(store.list()) in (0, 1)
            if store.names():  # whole, also when the kill came right after
                assert (store.path(REPO) / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
                assert store.verify(REPO) == []
                store.remove(REPO)
                models += 1
                hub.files[WEIGHTS] = weights(tmp_path / "origin", models)
            else:
                assert ended == -signal.SIGKILL
    assert len(list(store.partial.glob("draft-*"))) <= 30, "of killed pulls; they are swept later"
    # A hub may hear what a process had asked for when it was killed and others have asked since.
    began = Counter(start for path, start in hub.ranges if path == WEIGHTS)
    assert began <= Counter(kept), "the part on the disk is not fetched again"


def part_of(store: ModelStore, hub: FakeHub) -> int:
    """Return the bytes of the weights that a pull which was killed has left."""
    name = hashlib.sha256(hub.files[WEIGHTS]).hexdigest() + PART
    return sum(size_of(path) for path in store.partial.glob(f"pull-*/{name}"))


def test_pull_goes_on_where_a_removal_takes_what_it_has_found(
    store: ModelStore, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process removes the model whose files are shared, right after each look in turn."""
    find, looks = Blobs.find, 0

    def find_and_lose(self: Blobs, sha256: str) -> Path | None:
        nonlocal looks
        found = find(self, sha256)
        looks -= 1
        if looks == 0:
            ModelStore(store.root).remove("first")
        return found

    for moment in (1, 2, 4):
        monkeypatch.setattr(Blobs, "find", find)
        pulled(store, hub, name="first")
        monkeypatch.setattr(Blobs, "find", find_and_lose)
        looks = moment
        pulled(store, hub, name="second")
        assert looks <= 0, "there are as many looks"
        assert store.names() == ["second"]
        assert store.verify("second") == []
        store.remove("second")


def test_pull_begins_where_the_end_of_another_removes_its_folder(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = os.mkdir

    def make_late(path: Path, *more: Any) -> None:
        try:
            make(path, *more)
        except FileExistsError:
            os.rmdir(path)
            raise

    with store.pulling(REPO) as folder:
        pass
    monkeypatch.setattr(os, "mkdir", make_late)
    with store.pulling(REPO) as again:
        assert again == folder
        assert again.is_dir()
        monkeypatch.undo()
        with pytest.raises(PullRunning), store.pulling(REPO):
            pass
