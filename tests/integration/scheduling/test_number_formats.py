"""A model that gives no numbers in float16 on a card is loaded once more there, in float32."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from bitinglip import errors
from tests.support import half_engine
from tests.support.nvml import StandInCard, StandInNvml
from tests.support.scheduling_rig import Rig, answer, job, with_settings
from workers.devices import Devices
from workers.devices.cards import Cards

assert half_engine  # it adds its engine to the table

GB = 1_000_000_000


def run(path: Path, test: Callable[[Rig], Awaitable[None]], **settings: object) -> None:
    memory = SimpleNamespace(total=24 * GB, used=0)
    nvml = StandInNvml(StandInCard(uuid="GPU-aa", name="NVIDIA T4", memory=memory))
    models = {"a": {"engine": "half", "kv_cache_bytes": 0, **settings}}
    with_settings(path, test, {"models": models}, devices=Devices(Cards.find(None, nvml)))


def test_nan_in_float16_is_followed_by_a_load_in_float32_that_is_remembered(
    tmp_path: Path,
) -> None:
    async def test(rig: Rig) -> None:
        manifest = rig.manager.model_state("a").manifest
        assert rig.manager.facts.load_config(manifest, "cuda").dtype is None
        assert await answer(rig, job(model="a")) == "a b c"
        ready = rig.manager.model_state("a").ready
        assert ready is not None
        assert ready.dtype == "float32"
        assert rig.manager.facts.load_config(manifest, "cuda").dtype == "float32", "of its memory"
        failed = rig.manager.model_state("a").failed
        await rig.operations.unload("a")
        assert await answer(rig, job(model="a")) == "a b c"
        assert not failed

    run(tmp_path, test)


def test_nan_in_a_format_of_the_settings_fails_the_load_and_says_what_to_set(
    tmp_path: Path,
) -> None:
    async def test(rig: Rig) -> None:
        with pytest.raises(errors.ModelLoadFailed) as refused:
            await rig.operations.load("a")
        assert "dtype" in refused.value.message

    run(tmp_path, test, dtype="float16")
