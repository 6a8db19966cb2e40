"""Choices, several prompts and their scores in one job of the text engine, on a tiny model."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.engine_runs import run_to_end, step_until, submit
from tests.support.models.text import make_tiny_model, write_script
from tests.support.text_harness import BLOCK_SIZE, done, job, load, run
from workers.engines.base import Refused
from workers.engines.text import preprocess
from workers.engines.text.engine import TextEngine
from workers.protocol import Cancelled, Event, Started, TextChoice, TextDelta, TextDone, TextJob

PROMPTS = ["one two three", "Hello world, this is a longer prompt than the others are.", "T"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[TextEngine]:
    engine, _ = load(model, step_tokens=16)
    yield engine
    engine.close()


def with_fields(one: TextJob, **fields: Any) -> TextJob:
    return msgspec.structs.replace(one, **fields)


def texts(end: TextDone) -> list[str]:
    return [choice.text for choice in end.choices]


def tokens_of(choice: TextChoice) -> list[int]:
    return [each.id for each in choice.logprobs]


def test_choices_of_a_seed_differ_and_the_first_is_that_of_one(engine: TextEngine) -> None:
    one = job("a", PROMPTS[1], temperature=1.0, seed=11, max_tokens=10)
    alone = run(engine, one)["a"]
    events = run_to_end(engine, with_fields(one, n=4))
    end = done(events)["a"]
    assert texts(end)[0] == alone.text
    assert len(set(texts(end))) == 4
    assert texts(end) == texts(run(engine, with_fields(one, n=4, stream=False))["a"])
    assert end.prompt_tokens == alone.prompt_tokens
    assert end.completion_tokens == 4 * alone.completion_tokens
    deltas = [event for event in events if isinstance(event, TextDelta)]
    streamed = ["".join(e.text for e in deltas if e.choice == number) for number in range(4)]
    assert streamed == texts(end)
    assert sum(isinstance(event, Started) for event in events) == 1


def test_choices_share_the_blocks_of_their_prompt(engine: TextEngine) -> None:
    prompt = "word " * 12
    one = job("a", prompt, max_tokens=8)
    length = len(engine.prepare(one).prompts[0].ids)
    full = (length - 1) // BLOCK_SIZE
    submit(engine, with_fields(one, n=5))
    events = step_until(
        engine, lambda seen: {e.choice for e in seen if isinstance(e, TextDelta)} == set(range(5))
    )
    own = 5 * (-(-(length + 8) // BLOCK_SIZE) - full)
    assert full < engine.books()["blocks"] <= full + own
    end = done(events + run_to_end(engine))["a"]
    assert set(texts(end)) == {run(engine, one)["a"].text}


def test_prompts_of_one_job_are_answered_as_each_alone(engine: TextEngine) -> None:
    settings: dict[str, Any] = {"temperature": 0.9, "seed": 3, "max_tokens": 9}
    alone = [run(engine, job("a", prompt, **settings))["a"] for prompt in PROMPTS]
    ids = [tuple(engine.prepare(job("a", prompt)).prompts[0].ids) for prompt in PROMPTS]
    for prompts in (tuple(PROMPTS), tuple(ids), (PROMPTS[0], ids[1], PROMPTS[2])):
        several = with_fields(job("b", **settings), prompt=None, prompts=prompts, n=2)
        end = run(engine, several)["b"]
        assert texts(end)[::2] == [each.text for each in alone]
        assert not set(texts(end)[1::2]) & set(texts(end)[::2])
        assert end.prompt_tokens == sum(each.prompt_tokens for each in alone)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None, "prompts": ((1, 384),)}, "prompt"),
        ({"prompt": None, "prompts": ("fine", (-1,))}, "prompt"),
        ({"sampling": {"stop_token_ids": (5, 384)}}, "stop_token_ids"),
        ({"echo": True, "n": 100, "sampling": {"logprobs": 20, "max_tokens": 200}}, "logprobs"),
    ],
)
def test_tokens_that_a_model_does_not_have_are_refused(
    engine: TextEngine, fields: dict[str, Any], param: str
) -> None:
    fields = dict(fields)
    one = job("a", **fields.pop("sampling", {}))
    with pytest.raises(Refused) as caught:
        engine.prepare(with_fields(one, **fields))
    assert (caught.value.code, caught.value.param) == ("INVALID_REQUEST", param)


def test_echo_of_more_than_an_answer_holds_is_refused(
    engine: TextEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocess, "_MOST_ECHOED", 2 * len(PROMPTS[0]))
    engine.prepare(with_fields(job("a", PROMPTS[0]), echo=True, n=2))
    with pytest.raises(Refused) as caught:
        engine.prepare(with_fields(job("a", PROMPTS[0]), echo=True, n=3))
    assert caught.value.param == "echo"


def test_best_of_tells_the_likeliest_by_token_and_counts_all(engine: TextEngine) -> None:
    one = job("a", PROMPTS[0], temperature=1.2, seed=5, max_tokens=6)
    made = run(engine, with_fields(one, n=6, sampling=with_logprobs(one, 0)))["a"]
    means = [sum(e.logprob or 0 for e in c.logprobs) / len(c.logprobs) for c in made.choices]
    ranked = sorted(range(6), key=lambda number: -means[number])
    events = run_to_end(engine, with_fields(one, n=2, best_of=6))
    end = done(events)["a"]
    assert texts(end) == [made.choices[number].text for number in ranked[:2]]
    assert not any(choice.logprobs for choice in end.choices)
    assert end.completion_tokens == made.completion_tokens
    assert not [event for event in events if isinstance(event, TextDelta)]


def with_logprobs(one: TextJob, count: int) -> Any:
    return msgspec.structs.replace(one.sampling, logprobs=count)


@torch.inference_mode()
def library_logprobs(model: Path, ids: list[int]) -> list[float]:
    """Return the log-probability of each token but the first, by the library."""
    library = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    logs = library(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    found: list[float] = logs[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    return found


@pytest.mark.parametrize("cached", [1 << 20, 3 * 64 * 4 * BLOCK_SIZE * 18])
def test_echo_scores_the_prompt_in_pieces_as_the_library_does(model: Path, cached: int) -> None:
    engine, _ = load(model, step_tokens=7, kv_cache_bytes=cached)
    jobs = [
        with_fields(job(str(n), prompt, logprobs=2, max_tokens=4), echo=True)
        for n, prompt in enumerate(PROMPTS)
    ]
    prepared = {one.id: engine.prepare(one).prompts[0].ids for one in jobs}
    events = run_to_end(engine, *jobs)
    for name, end in done(events).items():
        (choice,) = end.choices
        prompt = PROMPTS[int(name)]
        assert choice.text.startswith(prompt)
        deltas = [event for event in events if isinstance(event, TextDelta) and event.id == name]
        assert "".join(delta.text for delta in deltas) == choice.text
        said = tokens_of(choice)
        assert said[:-4] == prepared[name]
        first, *others = [each.logprob for each in choice.logprobs]
        assert first is None
        assert others == pytest.approx(library_logprobs(model, said), abs=1e-3)
        assert all(len(each.top) == 2 for each in choice.logprobs[1:])
    engine.close()


def test_echo_alone_samples_nothing(engine: TextEngine) -> None:
    ids = tuple(engine.prepare(job("a", PROMPTS[1])).prompts[0].ids)
    one = with_fields(
        job("a", max_tokens=0, logprobs=0), prompt=None, prompts=(PROMPTS[1], ids), echo=True
    )
    end = run(engine, one)["a"]
    assert [choice.finish_reason for choice in end.choices] == ["length"] * 2
    assert texts(end)[0] == PROMPTS[1]
    assert PROMPTS[1] in texts(end)[1]
    assert tokens_of(end.choices[0]) == tokens_of(end.choices[1]) == list(ids)
    assert end.completion_tokens == 0
    assert (
        texts(run(engine, with_fields(one, n=2))["a"]) == [texts(end)[0]] * 2 + [texts(end)[1]] * 2
    )


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide a model that says A, B, C and its end token after "!"."""
    folder = make_tiny_model("llama", tmp_path_factory.mktemp("scripted") / "model")
    write_script(folder, *_script(folder))
    return folder


def _script(folder: Path) -> tuple[int, list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.convert_tokens_to_ids
    return ids("!"), [*map(ids, "ABC"), tokenizer.eos_token_id]


def test_min_tokens_and_stop_token_ids_end_a_text_when_they_say(scripted: Path) -> None:
    engine, _ = load(scripted)
    _, (_, b, c, _) = _script(scripted)

    def end(**sampling: Any) -> TextDone:
        return run(engine, job("a", "!", **{"ignore_eos": False, **sampling}))["a"]

    plain = end()
    assert (plain.text, plain.completion_tokens) == ("ABC", 4)
    longer = end(min_tokens=6, logprobs=0)
    assert longer.completion_tokens >= 6
    assert all(each.logprob != float("-inf") for each in longer.choices[0].logprobs)
    stopped = end(stop_token_ids=(c,))
    assert (stopped.text, stopped.choices[0].finish_reason) == ("AB", "stop")
    assert stopped.completion_tokens == 3
    assert end(stop=("B",)).text == "A"
    assert end(stop=("B",), min_tokens=3).text == "ABC"
    not_before = end(stop_token_ids=(b,), min_tokens=2, temperature=0.01, seed=1)
    assert not_before.text.startswith("A")
    engine.close()


def test_greedy_text_is_unchanged_by_neighbours_with_any_sampling(model: Path) -> None:
    engine, _ = load(model, step_tokens=13, kv_cache_bytes=3 * 64 * 4 * BLOCK_SIZE * 30)
    plain = [job(f"plain {n}", prompt, max_tokens=14) for n, prompt in enumerate(PROMPTS)]
    alone = {one.id: run(engine, one)[one.id].text for one in plain}
    chance = random.Random(4)
    neighbours: list[dict[str, Any]] = [
        {"sampling": {"temperature": 1.0, "typical_p": 0.4}, "n": 3},
        {"sampling": {"logprobs": 5}, "n": 2, "echo": True},
        {"sampling": {"temperature": 0.7, "top_p": 0.5, "min_tokens": 5, "ignore_eos": False}},
        {"sampling": {"temperature": 1.5, "typical_p": 0.9, "top_k": 20}, "n": 2, "best_of": 3},
        {"sampling": {"logprobs": 0, "max_tokens": 0}, "prompt": None, "prompts": ("x", (5, 6))},
    ]
    waiting = list(plain)
    for number, fields in enumerate(2 * neighbours):
        others = {name: value for name, value in fields.items() if name != "sampling"}
        one = job(f"other {number}", chance.choice(PROMPTS), **fields["sampling"])
        waiting.append(with_fields(one, **others))
    chance.shuffle(waiting)
    events: list[Event] = []
    for one in waiting:
        submit(engine, one)
        events += [event for _ in range(chance.randint(0, 3)) for event in engine.step()]
        if one.id == "other 5":
            engine.cancel(one.id)
    events += run_to_end(engine)
    assert {name: end.text for name, end in done(events).items() if name in alone} == alone
    assert len(done(events)) + sum(isinstance(e, Cancelled) for e in events) == len(waiting)
    engine.close()


def test_choices_of_one_job_leave_a_row_to_each_other_job(model: Path) -> None:
    engine, _ = load(model, max_batch=3)
    submit(engine, with_fields(job("many", "one", max_tokens=200), n=8))
    step_until(engine, lambda seen: len({e.choice for e in seen if isinstance(e, TextDelta)}) == 3)
    submit(engine, job("other", "two", max_tokens=3), job("third", "three", max_tokens=3))
    events = [event for _ in range(8) for event in engine.step()]
    assert {"other", "third"} <= set(done(events))
    engine.cancel("many")
    events = run_to_end(engine)
    assert isinstance(events[-1], Cancelled)
    assert events[-1].completion_tokens > 20
    engine.close()
