"""A hub whose model is large enough to be held in the middle of a download."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from tests.support.hub import FakeHub, Fault, fake_hub
from tests.support.model_folders import llama, llama_tensors

WEIGHTS = "model.safetensors"
BLOCK = 1 << 20  #: that a pull writes at once
SIZE = 4 * BLOCK


def weights(seed: int) -> bytes:
    """Return weights that no other seed has, so that no store has them already."""
    noise = np.random.default_rng(seed).integers(0, 255, SIZE, np.uint8)
    return save({**llama_tensors(), "model.layers.0.mlp.down_proj.weight": noise})


@contextmanager
def large_hub(folder: Path) -> Iterator[FakeHub]:
    """Yield a hub with one model of four megabytes."""
    with fake_hub(llama(folder)) as hub:
        renew(hub)
        yield hub


def renew(hub: FakeHub) -> None:
    """Have the hub well, and with weights that no store has."""
    let_go(hub)
    hub.gated, hub.listing = False, None
    hub.sent.clear()
    hub.files = {**hub.files, WEIGHTS: weights(len(hub.requests))}


def hold(hub: FakeHub) -> None:
    """Have the weights stop after a block, until they are let go."""
    hub.released = threading.Event()
    hub.faults[WEIGHTS] = Fault(times=-1, stall_after=BLOCK + BLOCK // 2)


def let_go(hub: FakeHub) -> None:
    hub.faults.clear()
    hub.released.set()
