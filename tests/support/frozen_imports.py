"""Makes the collector of reference cycles cheap, which engines call when memory runs out.

A conftest.py imports the fixture for its folder.
"""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def frozen_imports() -> Iterator[None]:
    """Let the collector leave out the objects of imported libraries: they take it 0.2 s a call."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
