"""Speculation in the text engine: the texts are those that it makes without, in fewer steps.

Biases hold the tiny models to two tokens, so that their texts repeat themselves, now and then.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from tests.support.engine_runs import run_to_end, step_until, submit
from tests.support.models.seq2seq import make_seq2seq_model
from tests.support.models.sequential_text import make_sequential_model
from tests.support.models.text import FAMILIES, make_tiny_model
from tests.support.text_harness import BLOCK_SIZE, distance_from_library, done, job, load, run
from workers.engines.base import Refused
from workers.engines.text.engine import TextEngine
from workers.protocol import (
    Cancelled,
    Event,
    Grammar,
    Started,
    TextDelta,
    TextDone,
    TextJob,
    TextOptions,
)

LOOKUP = TextOptions(speculation="lookup", draft_tokens=6)
PROMPTS = ["the same words again and again", "one two three one two three", "T", "json.dumps(obj)"]
TWO_WORDS = {270: 100.0, 300: 100.0}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: make_tiny_model(family, root / family) for family in FAMILIES}


@pytest.fixture(scope="module")
def plain(models: dict[str, Path]) -> Iterator[TextEngine]:
    engine, _ = load(models["llama"], step_tokens=32)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def engine(models: dict[str, Path]) -> Iterator[TextEngine]:
    engine, _ = load(models["llama"], step_tokens=32, text=LOOKUP)
    yield engine
    engine.close()


def repetitive(name: str, prompt: str = PROMPTS[0], **sampling: Any) -> TextJob:
    return job(name, prompt, **{"max_tokens": 40, "logit_bias": TWO_WORDS, **sampling})


def told(end: TextDone) -> TextDone:
    """Return an answer in a comparable form: without its other fields and its logprobs."""
    choices = [
        msgspec.structs.replace(
            choice,
            logprobs=tuple(
                msgspec.structs.replace(one, logprob=0.0, top=()) for one in choice.logprobs
            ),
        )
        for choice in end.choices
    ]
    return msgspec.structs.replace(
        end, choices=tuple(choices), drafted_tokens=0, accepted_tokens=0, cached_tokens=0
    )


def logprobs(end: TextDone) -> list[float | None]:
    return [one.logprob for choice in end.choices for one in choice.logprobs]


def same(engine: TextEngine, plain: TextEngine, *jobs: TextJob) -> dict[str, TextDone]:
    """Run jobs with speculation and without; return the ends of the former, which are the same."""
    expected = run(plain, *jobs)
    found = run(engine, *jobs)
    assert {name: told(end) for name, end in found.items()} == {
        name: told(end) for name, end in expected.items()
    }
    for name, end in found.items():
        assert logprobs(end) == pytest.approx(logprobs(expected[name]), abs=1e-3)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_speculation_changes_no_text_of_any_family(models: dict[str, Path], family: str) -> None:
    """Greedy and drawn, with logprobs, in small steps."""
    jobs = [repetitive(f"g{n}", prompt, logprobs=1) for n, prompt in enumerate(PROMPTS[:2])]
    jobs += [repetitive(f"d{n}", PROMPTS[n], temperature=0.8, seed=n) for n in range(2)]
    before, _ = load(models[family], step_tokens=11)
    after, _ = load(models[family], step_tokens=11, text=LOOKUP)
    ends = same(after, before, *jobs).values()
    assert 0 < sum(end.accepted_tokens for end in ends) < sum(end.drafted_tokens for end in ends)
    before.close()
    after.close()


def test_speculation_gives_the_library_s_tokens(
    engine: TextEngine, models: dict[str, Path]
) -> None:
    one = repetitive("x", logprobs=0, logit_bias={270: 0.0}, max_tokens=30)
    prompt = engine.prepare(one).prompts[0].ids
    found = distance_from_library(
        models["llama"], torch.float32, "cpu", prompt, run(engine, one)["x"]
    )
    assert max(found) <= 1e-3


def test_speculation_takes_fewer_steps_and_tells_each_token(engine: TextEngine) -> None:
    one = repetitive("x", logit_bias={270: 100.0})
    submit(engine, one)
    steps: list[list[Event]] = []
    while engine.in_flight:
        steps.append(engine.step())
    assert len(steps) < 20
    events = [event for step in steps for event in step]
    deltas = [event for event in events if isinstance(event, TextDelta)]
    assert max(sum(isinstance(e, TextDelta) for e in step) for step in steps) > 1
    assert len({delta.index for delta in deltas}) == len(deltas)
    end = done(events)["x"]
    assert "".join(delta.text for delta in deltas) == end.text
    assert end.completion_tokens == 40
    assert end.accepted_tokens > 20


def test_speculation_ends_texts_where_they_end(engine: TextEngine, plain: TextEngine) -> None:
    """End texts by their length, a stop string and an end token; never before min_tokens."""
    whole = run(plain, repetitive("x"))["x"].text
    stop = whole[len(whole) * 3 // 4 :][:3]
    jobs = [repetitive(f"length {most}", max_tokens=most) for most in range(1, 24, 3)]
    jobs += [
        repetitive("stop", stop=(stop,)),
        repetitive("token", stop_token_ids=(270,), logit_bias={300: 100.0, 270: 99.5}),
        repetitive("late", stop_token_ids=(270,), min_tokens=31),
    ]
    ends = same(engine, plain, *jobs)
    assert ends["stop"].choices[0].stop == stop
    assert ends["late"].completion_tokens > 30


def test_speculation_leaves_out_rows_that_depend_on_tokens_before(
    engine: TextEngine, plain: TextEngine
) -> None:
    grammar = Grammar(kind="regex", source="(ab){4,9}")
    held = msgspec.structs.replace(job("held", max_tokens=30), grammar=grammar)
    jobs = [repetitive("penalised", frequency_penalty=0.5), held, repetitive("free")]
    ends = same(engine, plain, *jobs)
    assert ends["penalised"].drafted_tokens == ends["held"].drafted_tokens == 0
    assert ends["free"].accepted_tokens > 0


def test_speculation_of_choices_and_shared_prompts(engine: TextEngine, plain: TextEngine) -> None:
    drawn = repetitive("n", temperature=1.2, seed=5)
    several = [
        msgspec.structs.replace(drawn, n=3, prefix_scope="a"),
        msgspec.structs.replace(drawn, id="best", n=1, best_of=2, prefix_scope="a"),
    ]
    same(engine, plain, *several)
    turn = msgspec.structs.replace(repetitive("turn", max_tokens=30), prefix_scope="b")
    text = turn.prompt or ""
    for number in range(3):
        one = msgspec.structs.replace(turn, prompt=text)
        end = same(engine, plain, one)["turn"]
        assert (end.cached_tokens > 0) == (number > 0)
        text += end.text + " and "


def test_speculation_in_a_small_cache_with_cancels(
    models: dict[str, Path], plain: TextEngine
) -> None:
    """Rows are preempted and cancelled; what others say stays the same, and nothing is held."""
    engine, _ = load(
        models["llama"], step_tokens=16, text=LOOKUP, kv_cache_bytes=30 * 3 * 64 * 4 * BLOCK_SIZE
    )
    chance = random.Random(1)
    jobs = [
        msgspec.structs.replace(
            repetitive(str(n), PROMPTS[n % 4], max_tokens=20 + n), prefix_scope="a"
        )
        for n in range(12)
    ]
    expected = run(plain, *jobs)
    submit(engine, *jobs)
    events = step_until(engine, lambda seen: sum(isinstance(e, TextDelta) for e in seen) > 20)
    for name in ("3", "7"):
        engine.cancel(name)
    while engine.in_flight:
        events += engine.step()
        if chance.random() < 0.1:
            engine.cancel("11")
    assert not any(engine.books().values())
    ended = done(events)
    assert len(ended) >= 9
    assert {name: told(end) for name, end in ended.items()} == {
        name: told(expected[name]) for name in ended
    }
    for name, end in ended.items():
        assert logprobs(end) == pytest.approx(logprobs(expected[name]), abs=1e-3)
    assert {e.id for e in events if isinstance(e, Cancelled)} == {str(n) for n in range(12)} - set(
        ended
    )
    engine.close()


def test_speculation_survives_steps_that_do_not_fit(
    engine: TextEngine, plain: TextEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step with drafts runs out of memory: it is computed again in parts, then without drafts."""
    runner = engine._runner
    compute = runner.launch

    def narrow(plan: Any, carry: Any) -> Any:
        if plan.tokens > 1 and all(event.samples for event in plan.decodes) and not plan.prefills:
            raise torch.OutOfMemoryError("made up")
        return compute(plan, carry)

    monkeypatch.setattr(runner, "launch", narrow)
    jobs = [repetitive("a"), repetitive("b", PROMPTS[1])]
    same(engine, plain, *jobs)


@pytest.mark.parametrize("family", ["lfm2", "mamba2", "t5"])
def test_speculation_is_refused_for_a_model_that_cannot_take_tokens_back(
    tmp_path: Path, family: str
) -> None:
    make = make_seq2seq_model if family == "t5" else make_sequential_model
    folder = make(family, tmp_path / family)
    with pytest.raises(Refused, match=r"text\.speculation is lookup, which is not for this model"):
        load(folder, text=LOOKUP)
    with pytest.raises(Refused, match=r"text\.overlap is on, which is not for this model"):
        load(folder, text=TextOptions(overlap="on"))


def test_speculation_is_refused_beside_steps_that_must_overlap(models: dict[str, Path]) -> None:
    options = msgspec.structs.replace(LOOKUP, overlap="on")
    with pytest.raises(Refused, match=r"text\.overlap is on, which is not for text\.speculation"):
        load(models["llama"], text=options)


def test_speculation_of_a_broken_draft_leaves_its_row_alone(
    engine: TextEngine, plain: TextEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logits after a draft that was wrong are not finite: its row is computed again."""
    runner = engine._runner
    compute, scrub = runner.launch, runner.scrub
    scrubbed: list[int] = []

    def noting(blocks: list[int]) -> None:
        scrubbed.extend(blocks)
        scrub(blocks)

    def broken(plan: Any, carry: Any) -> Any:
        order, logits, void = compute(plan, carry)
        row = 0
        for chunk in order:
            for place, draft in enumerate(chunk.drafts):
                if max(TWO_WORDS, key=lambda word: logits[row + place, word]) != draft:
                    logits[row + place + 1 : row + 1 + len(chunk.drafts)] = float("nan")
                    break
            row += 1 + len(chunk.drafts)
        return order, logits, void

    monkeypatch.setattr(runner, "launch", broken)
    monkeypatch.setattr(runner, "scrub", noting)
    same(engine, plain, repetitive("x", max_tokens=60), repetitive("y", PROMPTS[1]))
    assert scrubbed
    assert isinstance(run_to_end(engine, repetitive("z"))[0], Started)
