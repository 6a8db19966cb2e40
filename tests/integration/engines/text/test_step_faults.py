"""Faults of a text engine's steps: what is no number, and what a device says."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.engine_runs import run_to_end
from tests.support.models.poisoned import make_poisoned_model
from tests.support.models.text import make_tiny_model
from tests.support.text_harness import BLOCK_SIZE, done, job, load, run
from workers.engines.text.plan import Plan
from workers.protocol import Cancelled, Failed, Overlap, Sampling, TextJob, TextOptions


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_nan_in_a_row_fails_it_alone(tmp_path: Path, overlap: Overlap) -> None:
    folder = make_poisoned_model(tmp_path)
    cache = 20 * 3 * 64 * 4 * BLOCK_SIZE
    engine, _ = load(folder, kv_cache_bytes=cache, text=TextOptions(overlap=overlap))
    alone = run(engine, job("good"))["good"].text
    for one in (job("good"), job("bad", "Z Z Z")):
        engine.submit(engine.prepare(one))
    events = run_to_end(engine)
    assert [e.code for e in events if isinstance(e, Failed)] == ["INFERENCE_FAILED"]
    assert done(events)["good"].text == alone
    for number in range(6):
        assert run(engine, job(str(number)))[str(number)].text == alone, "its blocks are clean"
    engine.close()


@pytest.mark.parametrize("scope", [None, "a"])
@pytest.mark.parametrize("overlap", ["off", "on"])
def test_nan_of_a_prompt_that_never_reached_its_end_is_not_left_in_the_cache(
    tmp_path: Path, overlap: Overlap, scope: str | None
) -> None:
    """Cancel before a prompt's last piece, which alone would report the NaN."""
    cache = 24 * 3 * 64 * 4 * BLOCK_SIZE
    engine, _ = load(
        make_poisoned_model(tmp_path),
        kv_cache_bytes=cache,
        step_tokens=8,
        text=TextOptions(overlap=overlap),
    )
    alone = run(engine, job("good"))["good"].text
    bad = TextJob(id="bad", prompt="Z" * 40, sampling=Sampling(max_tokens=1), prefix_scope=scope)
    engine.submit(engine.prepare(bad))
    for _ in range(3):
        engine.step()
    engine.cancel("bad")
    assert [type(event) for event in run_to_end(engine)] == [Cancelled]
    assert engine._runner.hold_numbers(range(1, engine._allocator.total + 1))
    for number in range(6):
        assert run(engine, job(str(number)))[str(number)].text == alone
    engine.close()


def test_blocks_that_memory_is_too_small_to_look_at_are_taken_for_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = load(make_poisoned_model(tmp_path), step_tokens=8)
    cache = engine._runner.cache
    assert cache is not None

    def lacks(_blocks: Any) -> bool:
        raise torch.OutOfMemoryError

    engine.submit(engine.prepare(job("bad", "Z" * 40)))
    for _ in range(3):
        engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(cache, "hold_numbers", lacks)
        engine.cancel("bad")
        assert [type(event) for event in run_to_end(engine)] == [Cancelled]
    assert cache.hold_numbers(range(1, engine._allocator.total + 1))
    engine.close()


def test_error_of_the_device_ends_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its context is poisoned: going on would give garbage that looks valid."""
    engine, _ = load(make_tiny_model("llama", tmp_path))

    def broken(_plan: Plan, _carry: None) -> Any:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(engine._runner, "launch", broken)
    engine.submit(engine.prepare(job("x")))
    with pytest.raises(RuntimeError, match="device-side"):
        engine.step()
