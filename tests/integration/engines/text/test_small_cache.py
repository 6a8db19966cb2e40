"""A KV cache of 8 bits holds twice the tokens, and the text stays near that of the full one."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from bitinglip.scheduling.placement.estimate import LoadConfig, cache_bytes_per_token
from model_store.inspection import inspect
from tests.integration.engines.text.test_quantization import manifest_of, said_of
from tests.support.models.sequential_text import make_sequential_model
from tests.support.models.text import make_tiny_model, small_llama, write_model
from tests.support.text_harness import job, load, run
from workers.protocol import TextOptions

SMALL = TextOptions(kv_cache_dtype="fp8")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide a model with weights as small as those of real ones, so that roundings stay small
    too."""
    config = small_llama(initializer_range=0.1)
    return write_model(config, tmp_path_factory.mktemp("small") / "llama", seed=5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cache_of_eight_bits_holds_more_tokens_and_says_nearly_the_same(
    path: Path, dtype: str
) -> None:
    memory = 100_000
    sampling: dict[str, Any] = {"logprobs": 0, "max_tokens": 8, "logit_bias": {7: 100.0}}
    full, _ = load(path, dtype=dtype, kv_cache_bytes=memory)
    small, ready = load(path, dtype=dtype, kv_cache_bytes=memory, text=SMALL)
    factor = 4 if dtype == "float32" else 2
    assert small._runner.blocks >= factor * full._runner.blocks  # one block is for padding
    assert ready.sequential is None
    prompts = {"a": "one two three", "b": "four " * 20}
    answers = []
    for engine in (full, small):
        done = run(engine, *(job(name, text, **sampling) for name, text in prompts.items()))
        found = [done[name].choices[0].logprobs for name in prompts]
        answers.append(torch.tensor([one.logprob for row in found for one in row]))
        engine.close()
    spread = (answers[0] - answers[1]).abs().max().item()
    assert 0 < spread < 0.25


def test_cache_of_eight_bits_reuses_prefixes(path: Path) -> None:
    engine, _ = load(path, text=SMALL, dtype="float32")
    first, again = (
        run(engine, msgspec.structs.replace(job(name, "four " * 20), prefix_scope="k"))[name]
        for name in ("a", "b")
    )
    engine.close()
    assert again.cached_tokens > 0
    assert again.choices[0].text == first.choices[0].text


def test_cache_of_eight_bits_is_counted_as_such(path: Path) -> None:
    manifest = manifest_of(inspect(path))
    small = LoadConfig("cuda", dtype="bfloat16", kv_cache_dtype="fp8")
    full = LoadConfig("cuda", dtype="bfloat16")
    assert cache_bytes_per_token(manifest, full) == 2 * cache_bytes_per_token(manifest, small)


def test_cache_of_eight_bits_is_refused_where_the_library_keeps_the_cache(tmp_path: Path) -> None:
    folder = make_sequential_model("mamba2", tmp_path / "m")
    said = said_of(lambda: load(folder, text=SMALL))
    assert "text.kv_cache_dtype is fp8, which is not for this model" in said


def test_cache_of_eight_bits_works_with_windows_and_soft_caps(tmp_path: Path) -> None:
    engine, ready = load(make_tiny_model("gemma2", tmp_path / "gemma2"), text=SMALL)
    answers = run(engine, job("a", "one two three four five six seven"))
    engine.close()
    assert ready.sequential is None
    assert answers["a"].completion_tokens == 12
