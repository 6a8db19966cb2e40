"""Prefix reuse in the text engine on tiny models, against the library's own generate()."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.engine_runs import run_to_end
from tests.support.models.text import FAMILIES, make_tiny_model, train_tokenizer
from tests.support.text_harness import BLOCK_SIZE, distance_from_library, done, job, load, run
from workers.engines.text.engine import TextEngine
from workers.protocol import Failed, TextJob

BEGINNING = "You are a helpful assistant. Answer in one sentence, and say so if you do not know. "
QUESTIONS = ["What is rain?", "Who wrote this?", "And why not today, of all the days?", "?"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def engine(llama: Path) -> Iterator[TextEngine]:
    engine, _ = load(llama, step_tokens=32)
    yield engine
    engine.close()


def within(scope: str | None, one: TextJob, **fields: int) -> TextJob:
    return msgspec.structs.replace(one, prefix_scope=scope, **fields)


@pytest.mark.parametrize("family", FAMILIES)
def test_prefix_reuse_changes_no_greedy_text(family: str, tmp_path: Path) -> None:
    folder = make_tiny_model(family, tmp_path / family)
    jobs = [job(str(n), BEGINNING + each, logprobs=0) for n, each in enumerate(QUESTIONS)]
    jobs += [job("again", jobs[2].prompt or "", logprobs=0)]
    engine, _ = load(folder, step_tokens=11)
    length = len(engine.prepare(job("x", BEGINNING)).prompts[0].ids)
    prompts = {one.id: engine.prepare(one).prompts[0].ids for one in jobs}
    first = run(engine, within("a", jobs[0]))["0"]
    assert first.cached_tokens == 0
    for name, end in run(engine, *[within("a", one) for one in jobs[1:]]).items():
        assert length - BLOCK_SIZE <= end.cached_tokens < end.prompt_tokens
        found = distance_from_library(folder, torch.float32, "cpu", prompts[name], end)
        assert max(found) <= 1e-3
    alone = run(engine, within("a", jobs[1]))["1"].text
    forks = run(engine, within("b", jobs[1], n=3))["1"].choices
    assert [each.text for each in forks] == [alone] * 3
    engine.close()


def test_prefix_reuse_holds_for_the_turns_of_a_conversation(engine: TextEngine) -> None:
    text = BEGINNING + "First turn."
    for turn in range(3):
        end = run(engine, within("turns", job(f"t{turn}", text, max_tokens=9)))[f"t{turn}"]
        alone = run(engine, job("alone", text, max_tokens=9))["alone"]
        assert end.text == alone.text
        assert alone.cached_tokens == 0
        assert (end.cached_tokens > 0) == (turn > 0)
        text += end.text + " Next."


def test_prefix_reuse_keeps_scopes_apart(engine: TextEngine) -> None:
    prompt = "A secret that only one key has sent, long enough for some blocks."
    ends = [run(engine, within(scope, job("x", prompt)))["x"] for scope in ("a", "b", None, "a")]
    assert [end.cached_tokens > 0 for end in ends] == [False, False, False, True]
    assert len({end.text for end in ends}) == 1


def test_prefix_reuse_of_choices_counts_the_prompt_once(engine: TextEngine) -> None:
    prompt = "Several choices of one prompt that has been here before."
    one = job("x", prompt, temperature=1.0, seed=4)
    fresh = run(engine, within("n", one, n=3))["x"]
    again = run(engine, within("n", one, n=3))["x"]
    assert fresh.cached_tokens == 0
    assert 0 < again.cached_tokens < again.prompt_tokens
    assert [each.text for each in again.choices] == [each.text for each in fresh.choices]


def test_prefix_reuse_gives_way_where_the_cache_is_small(llama: Path) -> None:
    engine, ready = load(llama, kv_cache_bytes=30 * 3 * 64 * 4 * BLOCK_SIZE)
    assert ready.max_context is not None
    assert ready.max_context <= 30 * BLOCK_SIZE
    jobs = [job(str(n), f"{n} {each} " * 3, max_tokens=20) for n, each in enumerate(QUESTIONS)]
    expected = {one.id: run(engine, one)[one.id].text for one in jobs}
    for _ in range(2):
        found = run(engine, *[within("a", one) for one in jobs])
        assert {name: end.text for name, end in found.items()} == expected
    engine.close()


def test_prefix_of_a_text_that_became_nan_is_not_used_again(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    poison = train_tokenizer().convert_tokens_to_ids("Z")
    config = (tmp_path / "config.json").read_text()
    config = config.replace('"tie_word_embeddings": true', '"tie_word_embeddings": false')
    (tmp_path / "config.json").write_text(config)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.embed_tokens.weight"][poison] = float("inf")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    engine, _ = load(tmp_path, kv_cache_bytes=30 * 3 * 64 * 4 * BLOCK_SIZE)
    good = within("a", job("good", BEGINNING[:40]))
    expected = run(engine, good)["good"].text
    for name in ("bad", "worse"):
        bad = within("a", job(name, BEGINNING[:40] + "Z Z Z and more words, for full blocks."))
        engine.submit(engine.prepare(bad))
        failed = [each for each in run_to_end(engine) if isinstance(each, Failed)]
        assert [each.code for each in failed] == ["INFERENCE_FAILED"]
        for number in range(4):
            prompt = f"{number} other words that take the blocks"
            assert run(engine, within("a", job("other", prompt)))["other"].text
        assert done(run_to_end(engine, good))["good"].text == expected
    engine.close()
