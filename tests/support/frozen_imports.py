"""Makes the collector of reference cycles cheap, which engines call when memory runs out.

A conftest.py imports the fixture for its folder.
"""

import gc

import pytest


@pytest.fixture(scope="module", autouse=True)
def frozen_imports() -> None:
    """Let the collector leave out the objects of imported libraries: they take it 0.2 s a call.

    They stay left out, so that the next module's first call looks at what is new only.
    """
    gc.collect()
    gc.freeze()
