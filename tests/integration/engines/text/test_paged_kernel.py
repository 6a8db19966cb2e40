"""The text engine with the kernel that reads the cache in place, in Triton's interpreter."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.models.sequential_text import make_sequential_model
from tests.support.models.text import make_tiny_model
from tests.support.text_harness import distance_from_library, job, load, run
from workers.engines.base import Refused
from workers.engines.text.kernels import CHUNK, GRIDS
from workers.protocol import TextOptions

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton's interpreter"
)
pytest.importorskip("triton", reason="needs Triton: pip install '.[kernels]'")
IN_PLACE = TextOptions(attention="triton")
PROMPTS = ["Hello world, this prompt is longer than the sliding window.", "one two three"]


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gpt_oss"])
def test_paged_kernel_gives_the_library_s_tokens_and_logprobs(family: str, tmp_path: Path) -> None:
    """One of them is fused, one has windows and soft caps, one has windows and sinks."""
    folder = make_tiny_model(family, tmp_path / family)
    engine, ready = load(folder, step_tokens=16, text=IN_PLACE)
    assert ready.sequential is None
    jobs = [job(str(n), text, max_tokens=3, logprobs=1) for n, text in enumerate(PROMPTS)]
    prompts = {one.id: engine.prepare(one).prompts[0].ids for one in jobs}
    for name, end in run(engine, *jobs).items():
        found = distance_from_library(folder, torch.float32, "cpu", prompts[name], end)
        assert max(found) <= 1e-3
    engine.close()


def test_paged_kernel_is_compiled_at_load_for_all_lengths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that is compiled in a step holds up all answers for a second."""
    from workers.engines.text.kernels import paged_decode

    launched: list[int] = []
    kernel = paged_decode.paged_decode

    def noting(*tensors: Any, longest: int, **sizes: Any) -> torch.Tensor:
        launched.append(longest)
        return kernel(*tensors, longest=min(longest, 256), **sizes)  # the interpreter is slow

    monkeypatch.setattr(paged_decode, "paged_decode", noting)
    folder = make_tiny_model("llama", tmp_path / "llama")
    engine, _ = load(folder, kv_cache_bytes=3 << 20, text=IN_PLACE)
    grids = {next(grid for grid in GRIDS if grid * CHUNK >= each) for each in launched}
    assert grids == set(GRIDS)
    assert engine._runner.hold_numbers([1])
    engine.close()


def test_paged_kernel_is_refused_for_a_model_that_it_cannot_serve(tmp_path: Path) -> None:
    folder = make_sequential_model("lfm2", tmp_path / "lfm2")
    with pytest.raises(Refused, match=r"text\.attention is triton, which is not for this model"):
        load(folder, text=IN_PLACE)


def test_paged_kernel_is_refused_without_a_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    folder = make_tiny_model("llama", tmp_path / "llama")
    with pytest.raises(Refused, match="does not run on a CUDA device"):
        load(folder, text=IN_PLACE)
