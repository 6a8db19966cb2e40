"""A model that fails too often rests, says so, and is tried again by itself."""

from pathlib import Path
from typing import Any

import pytest

from bitinglip import errors
from tests.support.scheduling_rig import ECHO, Rig, answer, job, with_settings
from tests.support.wait import until


def settings(max_restarts: int, **fake: Any) -> dict[str, Any]:
    workers = {"max_restarts": max_restarts, "restart_window": 3.0}
    return {"workers": workers, "models": {ECHO: {"fake": {"faults": True, **fake}}}}


def test_given_up_model_is_loaded_again_after_its_rest(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        await rig.operations.load(ECHO)
        rig.kill()
        await until(lambda: rig.manager.models[ECHO].restarts and rig.manager.serving(ECHO))
        rig.kill()
        await until(lambda: rig.operations.status(ECHO) == "error")
        said = "Its worker was ended by signal 9. It is tried again in"
        assert said in (rig.operations.cause(ECHO) or "")
        with pytest.raises(errors.ModelLoadFailed, match=said) as refused:
            await answer(rig, job())
        assert 0 < (refused.value.retry_after or 0) <= 3
        assert rig.operations.reservations() == []
        await until(lambda: rig.operations.status(ECHO) == "ready")
        assert rig.operations.cause(ECHO) is None
        assert await answer(rig, job()) == "a b c"

    with_settings(tmp_path, test, settings(max_restarts=1))


def test_given_up_model_that_does_not_load_rests_longer_each_time(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        rests = []
        for _ in range(2):
            with pytest.raises(errors.ModelLoadFailed, match="was told not to load") as ended:
                await answer(rig, job())
            assert ended.value.retry_after
            with pytest.raises(errors.ModelLoadFailed, match="out of service") as refused:
                await answer(rig, job())
            rests.append(refused.value.retry_after or 0)
            await until(lambda: not rig.manager.models[ECHO].rests(rig.manager.clock()))
            assert rig.operations.status(ECHO) == "error"  # no request has come for it since
        assert rests[0] <= 1 < rests[1] <= 2

    values = settings(max_restarts=0, load_fault="error")
    values["workers"]["restart_window"] = 1
    with_settings(tmp_path, test, values)


def test_given_up_model_that_is_to_be_preloaded_is_tried_without_a_request(
    tmp_path: Path,
) -> None:
    async def test(rig: Rig) -> None:
        rig.operations.open()
        await until(lambda: rig.manager.models[ECHO].given_up)
        first = rig.manager.models[ECHO].retry_at
        await until(lambda: rig.manager.models[ECHO].retry_at > first)  # it has failed again

    values = settings(max_restarts=0, load_fault="error")
    values["models"][ECHO]["preload"] = True
    values["workers"]["restart_window"] = 1
    with_settings(tmp_path, test, values)


def test_given_up_model_is_loaded_at_once_on_request(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        await rig.operations.load(ECHO)
        rig.kill()
        await until(lambda: rig.operations.status(ECHO) == "error")
        await rig.operations.load(ECHO)
        assert await answer(rig, job()) == "a b c"

    values = settings(max_restarts=0)
    values["workers"]["restart_window"] = 600
    with_settings(tmp_path, test, values)
