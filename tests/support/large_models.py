"""Models whose weights take a while to come, for downloads that are looked at meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from tests.support.hub import FakeHub, fake_hub
from tests.support.model_folders import llama, llama_tensors

WEIGHTS = "model.safetensors"
SIZE = 4 << 20  #: a block of a pull is a quarter of it
SLOW = 0.05  #: seconds for each 64 KiB, so that a block takes most of a second


def weights(seed: int) -> bytes:
    """Return weights that no other seed has, so that no store has them already."""
    noise = np.random.default_rng(seed).integers(0, 255, SIZE, np.uint8)
    return save({**llama_tensors(), "model.layers.0.mlp.down_proj.weight": noise})


@contextmanager
def large_hub(folder: Path) -> Iterator[FakeHub]:
    """A hub with one model of four megabytes."""
    with fake_hub(llama(folder)) as hub:
        renew(hub)
        yield hub


def renew(hub: FakeHub) -> None:
    """Have the hub well, and with weights that no store has."""
    hub.slow, hub.gated, hub.listing = 0, False, None
    hub.sent.clear()
    hub.files = {**hub.files, WEIGHTS: weights(len(hub.requests))}
