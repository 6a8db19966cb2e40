"""Says which confinement a test of a running server may expect of its workers."""

from typing import Any

import pytest

from workers.confinement import Kernel


def check_whole(worker: dict[str, Any]) -> None:
    """Fail if a worker lacks a measure that this kernel has; skip for one on a card."""
    if worker["devices"] != ["cpu"]:
        pytest.skip("on a card, workers are confined only where that is required")
    missing = [each.partition(":")[0] for each in worker["confinement"]["missing"]]
    assert missing == list(Kernel.find().lacks())
