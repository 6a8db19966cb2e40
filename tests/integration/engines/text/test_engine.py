"""The text engine on tiny real models, against the library's own generate()."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.engine_runs import run_to_end
from tests.support.models.text import (
    EOS,
    FAMILIES,
    VOCAB,
    make_tiny_model,
    train_tokenizer,
    write_script,
)
from tests.support.text_harness import (
    BLOCK_SIZE,
    distance_from_library,
    done,
    job,
    load,
    run,
)
from workers.engines.base import Refused
from workers.engines.text.engine import TextEngine
from workers.protocol import (
    Cancelled,
    ChatMessage,
    Event,
    Overlap,
    Sampling,
    Started,
    TextDelta,
    TextDone,
    TextJob,
    TextOptions,
)

PROMPTS = [
    "Hello world, this prompt is much longer than the sliding window of any model here.",
    "one two three",
    "T",
    "json.dumps(obj, *, skipkeys=False)",
    "żółć 漢字 🦊 and some more words to make it long enough for several pieces",
    " ".join(["again"] * 25),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: make_tiny_model(family, root / family) for family in FAMILIES}


@pytest.fixture(scope="module")
def llama(models: dict[str, Path]) -> Iterator[TextEngine]:
    engine, _ = load(models["llama"], step_tokens=32)
    yield engine
    engine.close()


class Reference:
    """Holds the library's greedy answers, by its generate()."""

    def __init__(self, path: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self._model = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        )
        self._model.eval()

    def text(self, prompt: str, count: int) -> str:
        inputs = self.tokenizer(prompt, return_tensors="pt")
        self._model.generation_config.eos_token_id = None
        output = self._model.generate(
            **inputs, max_new_tokens=count, do_sample=False, pad_token_id=0
        )
        ids = output[0, inputs["input_ids"].shape[1] :].tolist()
        assert len(ids) == count
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text


# ---- equality --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_output_is_that_of_generate_alone_and_in_any_company(
    models: dict[str, Path], family: str
) -> None:
    reference = Reference(models[family])
    lengths = [20, 7, 30, 12, 25, 16]
    expected = {str(n): reference.text(prompt, lengths[n]) for n, prompt in enumerate(PROMPTS)}
    jobs = [job(str(n), prompt, max_tokens=lengths[n]) for n, prompt in enumerate(PROMPTS)]
    overlaps: tuple[Overlap, ...] = ("off", "on")
    for overlap in overlaps:
        engine, _ = load(models[family], step_tokens=11, text=TextOptions(overlap=overlap))
        for one in jobs[:2]:
            assert run(engine, one)[one.id].text == expected[one.id]
        events = random_arrival(engine, jobs, seed=len(family))
        ends = done(events).items()
        assert {name: end.text for name, end in ends if name in expected} == expected
        engine.close()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.3)])
def test_greedy_tokens_and_logprobs_of_several_rows_are_the_library_s(
    models: dict[str, Path], dtype: str, tolerance: float
) -> None:
    engine, _ = load(models["qwen3"], step_tokens=11, dtype=dtype)
    jobs = [job(str(n), prompt, logprobs=3) for n, prompt in enumerate(PROMPTS[:3])]
    prompts = {one.id: engine.prepare(one).prompts[0].ids for one in jobs}
    for name, end in run(engine, *jobs).items():
        found = distance_from_library(
            models["qwen3"], getattr(torch, dtype), "cpu", prompts[name], end
        )
        assert max(found) <= tolerance
    engine.close()


def random_arrival(engine: TextEngine, jobs: list[TextJob], seed: int) -> list[Event]:
    """Submit at random steps, beside sampled and cancelled requests."""
    chance = random.Random(seed)
    noise = [
        job(f"noise{n}", chance.choice(PROMPTS), temperature=1.0, top_k=5, max_tokens=9, seed=n)
        for n in range(4)
    ]
    waiting = [*jobs, *noise]
    chance.shuffle(waiting)
    events: list[Event] = []
    while waiting:
        for _ in range(chance.randint(0, 3)):
            events += engine.step()
        one = waiting.pop()
        engine.submit(engine.prepare(one))
        if one.id == "noise3":
            events += engine.step()
            engine.cancel(one.id)
    return events + run_to_end(engine)


@pytest.mark.parametrize("family", FAMILIES)
def test_preemption_in_a_small_cache_changes_no_answer(
    models: dict[str, Path], family: str
) -> None:
    reference = Reference(models[family])
    per_block = 3 * (96 if family == "gpt2" else 64) * 4 * BLOCK_SIZE
    engine, ready = load(models[family], step_tokens=24, kv_cache_bytes=31 * per_block)
    assert ready.max_context == 30 * BLOCK_SIZE
    jobs = [replace(job(str(n), "one two three", max_tokens=60), priority=n // 3) for n in range(4)]
    resets = 0
    for one in jobs:
        engine.submit(engine.prepare(one))
    events: list[Event] = []
    waited = engine.books()["waiting"]
    while engine.in_flight:
        events += engine.step()
        resets += engine.books()["waiting"] > waited
        waited = engine.books()["waiting"]
    assert resets, "the cache was to be too small"
    expected = reference.text("one two three", 60)
    assert [end.text for end in done(events).values()] == [expected] * 4
    assert next(iter(done(events))) == "3", "the others gave way"
    assert len([event for event in events if isinstance(event, Started)]) == 4
    assert not any(engine.books().values())
    engine.close()


def test_seed_gives_the_same_tokens_alone_and_in_a_batch(llama: TextEngine) -> None:
    settings: list[dict[str, Any]] = [
        {"temperature": 1.0, "seed": 7},
        {"temperature": 0.8, "top_p": 0.9, "seed": 7},
        {"temperature": 1.4, "top_k": 30, "min_p": 0.01, "seed": 8},
        {"temperature": 1.0, "repetition_penalty": 1.3, "presence_penalty": 0.5, "seed": 9},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.4},
    ]
    jobs = [job(str(n), PROMPTS[n], max_tokens=20, **one) for n, one in enumerate(settings)]
    alone = {one.id: run(llama, one)[one.id].text for one in jobs}
    together = run(llama, *jobs, job("other", PROMPTS[5], temperature=2.0))
    assert {name: together[name].text for name in alone} == alone
    assert alone["0"] != run(llama, job("0", PROMPTS[0], temperature=1.0, seed=6))["0"].text


def test_seed_left_open_gives_different_answers(llama: TextEngine) -> None:
    ends = run(llama, *(job(str(n), temperature=1.0, max_tokens=20) for n in range(2)))
    assert ends["0"].text != ends["1"].text


# ---- events ----------------------------------------------------------------------------------


def test_events_of_one_request(llama: TextEngine) -> None:
    llama.submit(llama.prepare(job("a", "żółć 🦊", max_tokens=40, logprobs=2)))
    events = run_to_end(llama)
    assert isinstance(events[0], Started)
    end = events[-1]
    assert isinstance(end, TextDone)
    assert (end.choices[0].finish_reason, end.completion_tokens) == ("length", 40)
    tokens = [event for event in events if isinstance(event, TextDelta)]
    assert "".join(event.text for event in tokens) == end.text
    indices = [event.index for event in tokens]
    assert indices == sorted(set(indices))
    assert len(end.choices[0].logprobs) == 40
    assert all(
        len(one.top) == 2 and one.top[0][2] >= (one.logprob or 0.0) - 1e-6
        for one in end.choices[0].logprobs
    )
    assert [p for event in tokens for p in event.logprobs] == list(
        end.choices[0].logprobs[: indices[-1] + 1]
    )


def test_cancel_takes_effect_in_the_next_step_wherever_the_request_is(
    models: dict[str, Path],
) -> None:
    engine, _ = load(models["llama"], step_tokens=8, max_batch=2)
    for name in ("running", "prompting", "waiting"):
        engine.submit(engine.prepare(job(name, PROMPTS[5], max_tokens=50)))
        while name == "running" and not any(isinstance(e, TextDelta) for e in engine.step()):
            pass
    engine.step()
    for name in ("running", "prompting", "waiting", "unknown"):
        engine.cancel(name)
    events = engine.step()
    assert all(isinstance(event, Cancelled) for event in events)
    ends = {event.id for event in events if isinstance(event, Cancelled)}
    assert ends == {"running", "prompting", "waiting"}
    assert engine.in_flight == 0
    assert not any(engine.books().values())
    engine.close()


def test_stop_string_across_tokens_is_found_and_never_shown(llama: TextEngine) -> None:
    whole = run(llama, job("a", max_tokens=30))["a"].text
    stop = whole[9:14]
    llama.submit(llama.prepare(job("a", max_tokens=30, stop=(stop, "never"))))
    events = run_to_end(llama)
    end = done(events)["a"]
    assert end.text == whole[: whole.index(stop)]
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == end.text
    assert end.choices[0].finish_reason == "stop"
    assert end.completion_tokens < 30


# ---- ends ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide a model that answers "!" with a fox, byte by byte, and its end token."""
    folder = make_tiny_model("llama", tmp_path_factory.mktemp("scripted"))
    tokenizer = train_tokenizer()
    fox = [tokenizer.convert_tokens_to_ids(letter) for letter in "ðŁ¦Ĭ"]
    script = [tokenizer.convert_tokens_to_ids("A"), *fox, tokenizer.convert_tokens_to_ids(EOS)]
    write_script(folder, tokenizer.convert_tokens_to_ids("!"), script)
    return folder


def test_end_token_ends_and_counts_and_is_not_shown(scripted: Path) -> None:
    engine, _ = load(scripted)
    engine.submit(engine.prepare(job("a", "!", ignore_eos=False)))
    events = run_to_end(engine)
    end = done(events)["a"]
    assert (end.text, end.choices[0].finish_reason, end.completion_tokens) == ("A🦊", "stop", 6)
    shown = [(event.text, event.index) for event in events if isinstance(event, TextDelta)]
    assert shown == [("A", 0), ("🦊", 4)]
    going_on = run(engine, job("a", "!", ignore_eos=True, max_tokens=9))["a"]
    assert (going_on.choices[0].finish_reason, going_on.completion_tokens) == ("length", 9)
    cut = run(engine, job("a", "!", max_tokens=3))["a"]
    assert cut.text.startswith("A")
    assert cut.choices[0].finish_reason == "length"
    engine.close()


# ---- refusals --------------------------------------------------------------------------------


def refusal(engine: TextEngine, one: TextJob) -> Refused:
    with pytest.raises(Refused) as caught:
        engine.prepare(one)
    return caught.value


def test_context_that_does_not_suffice_is_refused_with_the_numbers_or_clipped(
    llama: TextEngine,
) -> None:
    refused = refusal(llama, job("a", max_tokens=1000))
    assert (refused.code, refused.param) == ("CONTEXT_LENGTH_EXCEEDED", "max_tokens")
    assert refused.details["max_context"] == 256
    assert refused.details["max_tokens"] == 1000
    assert refusal(llama, job("a", "word " * 500)).param == "prompt"
    assert refusal(llama, job("a", "x" * 100_000)).param == "prompt"
    left_open = TextJob(
        id="a", prompt="word " * 500, sampling=Sampling(max_tokens=9999), clip_max_tokens=True
    )
    told = refusal(llama, left_open)
    assert "This model's maximum context length is 256 tokens" in told.message
    assert "9999" not in told.message  # the client has not said that
    assert "max_tokens" not in told.details
    clipped = TextJob(
        id="a", prompt="one", sampling=Sampling(max_tokens=9999), clip_max_tokens=True
    )
    assert llama.prepare(clipped).prompts[0].max_tokens < 256


def test_parameters_that_would_harm_the_device_are_refused(llama: TextEngine) -> None:
    refused = refusal(llama, job("a", logit_bias={VOCAB: 1.0}))
    assert (refused.code, refused.param) == ("INVALID_REQUEST", "logit_bias")
    assert run(llama, job("a", top_k=10**9, temperature=1.0))["a"].completion_tokens == 12


def test_prompt_that_is_empty_begins_with_the_bos_token(llama: TextEngine) -> None:
    assert run(llama, job("a", ""))["a"].prompt_tokens == 1


def test_chat_messages_go_through_the_template(llama: TextEngine) -> None:
    chat = TextJob(
        id="a",
        messages=(ChatMessage("user", "one two"),),
        sampling=Sampling(max_tokens=5, ignore_eos=True),
    )
    tokenizer = train_tokenizer()
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "one two"}], add_generation_prompt=True
    )
    assert llama.prepare(chat).prompts[0].ids == rendered["input_ids"]


def test_chat_with_a_model_without_a_template_is_refused(tmp_path: Path) -> None:
    engine, ready = load(make_tiny_model("gpt2", tmp_path, template=None))
    assert not ready.has_chat_template
    chat = TextJob(id="a", messages=(ChatMessage("user", "x"),), sampling=Sampling(max_tokens=1))
    refused = refusal(engine, chat)
    assert (refused.code, refused.param) == ("INVALID_REQUEST", "messages")
    engine.close()
