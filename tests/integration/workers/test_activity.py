"""Compiling and the first use of kernels are told by workers, and are no silence."""

import asyncio
from pathlib import Path

from tests.support import slow_engine
from tests.support.jobs import text_job
from tests.support.scheduling_rig import Rig, answer, with_settings
from tests.support.wait import until
from workers.protocol import Activity

SHORT = {"heartbeat_timeout": 1, "load_timeout": 1}


def test_compiling_and_a_first_step_may_be_silent_for_long_and_are_shown(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        folder = rig.store.path("a")
        compiles, steps = folder / slow_engine.COMPILES, folder / slow_engine.STEPS
        compiles.touch()
        steps.touch()
        waits = asyncio.create_task(answer(rig, text_job("a b c", model="a", max_tokens=3)))
        await outlasts(rig, "compile", seconds=2 * SHORT["load_timeout"])
        compiles.unlink()
        await outlasts(rig, "warmup", seconds=3 * SHORT["heartbeat_timeout"])
        assert rig.operations.workers()[0].state == "busy"
        steps.unlink()
        assert await waits == "a b c"
        assert rig.operations.workers()[0].activity is None
        assert rig.operations.workers()[0].restarts == 0

    models = {"a": {"engine": "slow"}}
    with_settings(tmp_path, test, {"models": models, "workers": SHORT})


async def outlasts(rig: Rig, activity: Activity, *, seconds: float) -> None:
    """Check that a worker reports an activity for longer than it may be silent."""

    def is_told() -> bool:
        return any(each.activity == activity for each in rig.operations.workers())

    await until(is_told)
    await asyncio.sleep(seconds)
    assert is_told()
