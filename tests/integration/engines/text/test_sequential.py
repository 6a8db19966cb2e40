"""Recurrent and hybrid models in the text engine, against the library's own generate()."""

import random
from pathlib import Path

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.engine_runs import finals, run_to_end, submit
from tests.support.models.sequential_text import FAMILIES, make_sequential_model
from tests.support.models.text import VOCAB
from tests.support.text_harness import distance_from_library, done, job, load, note_preempted, run
from workers.engines.base import Refused
from workers.protocol import Cancelled, Grammar

PROMPTS = [
    "Hello world, this prompt is longer than the others and comes in several pieces.",
    "one two three",
    "T",
]


_REASONS = dict.fromkeys(FAMILIES, " of its 4 layers are not plain attention") | {
    "falcon_h1": "it has layers of the type ",
}


def generate(folder: Path, prompt: str, count: int) -> str:
    """Return what the library's generate() says, greedy."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(
        input_ids=inputs["input_ids"], max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    text: str = tokenizer.decode(
        output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return text


def test_sequential_model_whose_state_is_of_all_sequences_is_refused(tmp_path: Path) -> None:
    folder = make_sequential_model("recurrent_gemma", tmp_path / "model")
    with pytest.raises(Refused) as refused:
        load(folder)
    assert refused.value.code == "MODEL_LOAD_FAILED"


@pytest.fixture(scope="module")
def lfm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sequential_model("lfm2", tmp_path_factory.mktemp("models") / "lfm2")


@pytest.mark.parametrize("family", FAMILIES)
def test_sequential_text_is_that_of_generate_alone_and_beside_others(
    family: str, tmp_path: Path
) -> None:
    folder = make_sequential_model(family, tmp_path / family)
    engine, ready = load(folder, step_tokens=11)
    assert _REASONS[family] in (ready.sequential or "")
    jobs = [job(str(n), prompt, max_tokens=9 + n) for n, prompt in enumerate(PROMPTS)]
    expected = {str(n): generate(folder, each, 9 + n) for n, each in enumerate(PROMPTS)}
    assert run(engine, jobs[0])["0"].text == expected["0"]
    ends = run(engine, *jobs, job("noise", PROMPTS[1], temperature=1.0, seed=3))
    assert {name: end.text for name, end in ends.items() if name in expected} == expected
    engine.close()


def test_sequential_logprobs_are_the_library_s(lfm2: Path) -> None:
    engine, _ = load(lfm2, step_tokens=11)
    one = job("a", PROMPTS[0], logprobs=2)
    prompt = engine.prepare(one).prompts[0].ids
    end = run(engine, one)["a"]
    assert max(distance_from_library(lfm2, torch.float32, "cpu", prompt, end)) <= 1e-3
    scored = run(engine, msgspec.structs.replace(one, echo=True))["a"].choices[0]
    again = run(engine, msgspec.structs.replace(one, echo=True))["a"].choices[0]
    assert [each.logprob for each in scored.logprobs[1:]] == pytest.approx(
        [each.logprob for each in again.logprobs[1:]]
    )
    assert len(scored.logprobs) == len(prompt) + end.completion_tokens
    engine.close()


@pytest.mark.parametrize("family", ["lfm2", "mamba2"])
def test_sequential_prompt_makes_the_logits_that_are_read_and_no_others(
    family: str, tmp_path: Path
) -> None:
    """Count the logits: all of a long prompt's would be larger than most models."""
    engine, _ = load(make_sequential_model(family, tmp_path / family), step_tokens=64)
    heights: list[int] = []
    engine._loaded.model.register_forward_hook(
        lambda _module, _given, output: heights.append(output.logits.shape[1])
    )
    one = job("a", "long " * 30, logprobs=1, max_tokens=2)
    plain = run(engine, one)["a"]
    assert set(heights) == {1}
    heights.clear()
    echoed = run(engine, msgspec.structs.replace(one, echo=True))["a"].choices[0]
    assert max(heights) <= 64
    assert len(echoed.logprobs) == plain.prompt_tokens + plain.completion_tokens
    engine.close()


def test_sequential_choices_and_prefixes_are_each_computed_alone(lfm2: Path) -> None:
    engine, _ = load(lfm2)
    one = msgspec.structs.replace(job("a", PROMPTS[0], temperature=1.0, seed=5), prefix_scope="k")
    first = run(engine, msgspec.structs.replace(one, n=3))["a"]
    assert len({each.text for each in first.choices}) == 3
    assert first.choices[0].text == run(engine, one)["a"].text
    assert run(engine, one)["a"].cached_tokens == 0
    engine.close()


def test_sequential_text_is_the_same_after_it_gave_way_to_others(lfm2: Path) -> None:
    """The cache holds less than all of them: the youngest loses its own and begins again."""
    engine, ready = load(lfm2, kv_cache_bytes=200_000, max_context=80)
    jobs = [job(str(n), f"{n} " + PROMPTS[0], max_tokens=20) for n in range(5)]
    expected = {one.id: run(engine, one)[one.id].text for one in jobs}
    assert ready.slots > 2
    preempted = note_preempted(engine)
    assert {name: end.text for name, end in run(engine, *jobs).items()} == expected
    assert preempted
    engine.close()


def test_sequential_text_without_any_keys_is_the_same_after_its_row_was_another_s(
    tmp_path: Path,
) -> None:
    """A recurrent state takes no blocks for its tokens: what gives way is a job's second row."""
    engine, _ = load(make_sequential_model("mamba2", tmp_path / "m"), max_batch=3)
    many = msgspec.structs.replace(job("many", PROMPTS[0], temperature=1.0, seed=5), n=3)
    others = [job(str(n), prompt, max_tokens=9) for n, prompt in enumerate(PROMPTS)]
    expected = {one.id: run(engine, one)[one.id].choices for one in (many, *others)}
    preempted = note_preempted(engine)
    submit(engine, many)
    events = [event for _ in range(4) for event in engine.step()]
    found = done(events + run_to_end(engine, *others))
    assert set(preempted) == {"many"}
    assert {name: end.choices for name, end in found.items()} == expected
    engine.close()


@pytest.mark.parametrize("family", ["lfm2", "mamba2"])
def test_sequential_text_is_the_same_after_a_pass_that_ran_out_of_memory(
    family: str, tmp_path: Path
) -> None:
    """The pass ends behind all layers, which have put its token into the cache by then."""
    engine, _ = load(make_sequential_model(family, tmp_path / family))
    jobs = [job(str(n), prompt, max_tokens=12) for n, prompt in enumerate(PROMPTS)]
    expected = {name: end.text for name, end in run(engine, *jobs).items()}
    passes = 0

    def fail_once(module: torch.nn.Module, _inputs: object, _output: object) -> None:
        nonlocal passes
        passes += isinstance(module, torch.nn.Linear) and module.out_features == VOCAB
        if passes == 8:
            passes += 1
            raise torch.OutOfMemoryError

    hook = torch.nn.modules.module.register_module_forward_hook(fail_once)
    try:
        ends = run(engine, *jobs)
    finally:
        hook.remove()
    assert passes > 8
    assert {name: end.text for name, end in ends.items()} == expected
    engine.close()


def test_sequential_text_keeps_to_its_grammar(lfm2: Path) -> None:
    engine, _ = load(lfm2)
    form = Grammar(kind="choice", source='["yes", "no", "perhaps"]')
    one = msgspec.structs.replace(job("a", PROMPTS[1], ignore_eos=False), grammar=form)
    assert run(engine, one)["a"].text in ("yes", "no", "perhaps")
    engine.close()


def test_sequential_job_is_cancelled_beside_others(lfm2: Path) -> None:
    engine, _ = load(lfm2)
    chance = random.Random(1)
    keep, gone = job("keep", PROMPTS[0], max_tokens=30), job("gone", PROMPTS[1], max_tokens=60)
    expected = run(engine, keep)["keep"].text
    for one in (keep, gone):
        engine.submit(engine.prepare(one))
    events = [event for _ in range(chance.randint(3, 9)) for event in engine.step()]
    engine.cancel("gone")
    events += run_to_end(engine)
    assert isinstance(finals(events)["gone"], Cancelled)
    assert done(events)["keep"].text == expected
    engine.close()
