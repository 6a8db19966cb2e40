"""Steps that are queued before the tokens of the one before are known: the same answers."""

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.engine_runs import finals, run_to_end, step_until, submit
from tests.support.models.poisoned import make_poisoned_model, poison_id
from tests.support.models.text import make_tiny_model
from tests.support.text_harness import BLOCK_SIZE, done, job, load, run
from workers.engines.text import host_copy
from workers.engines.text.draw import Draw
from workers.engines.text.engine import TextEngine
from workers.engines.text.scheduler import MustLand, Scheduler
from workers.protocol import (
    Cancelled,
    Event,
    Failed,
    Grammar,
    TextDelta,
    TextDone,
    TextJob,
    TextOptions,
)

ON = TextOptions(overlap="on")
OFF = TextOptions(overlap="off")
#: a block of the tiny llama, in float32
BLOCK_BYTES = 3 * 64 * 4 * BLOCK_SIZE
LONG = "a prompt that is read in several pieces, as it is longer than a step of this engine is"
#: a nucleus larger than the candidates that are looked at first, so that the host decides
WIDE: dict[str, Any] = {"temperature": 5.0, "top_p": 0.999}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 0.9, "top_p": 0.95, "top_k": 50, "seed": 4, "logprobs": 2},
    {**WIDE, "seed": 5, "logprobs": 1},
    {**WIDE, "seed": 6, "repetition_penalty": 1.3, "frequency_penalty": 0.6},
    {"repetition_penalty": 1.4, "presence_penalty": 0.8, "logprobs": 0},
    {"temperature": 1.2, "min_p": 0.05, "seed": 7, "logit_bias": {9: 3.0}},
    {"temperature": 1.0, "seed": 8, "stop_token_ids": tuple(range(0, 384, 9)), "min_tokens": 3},
    {"temperature": 1.0, "seed": 9, "stop": ("e", "o")},
    {"max_tokens": 1},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def plain(folder: Path) -> Iterator[TextEngine]:
    engine, _ = load(folder, step_tokens=16, text=OFF)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def overlapped(folder: Path) -> Iterator[TextEngine]:
    engine, _ = load(folder, step_tokens=16, text=ON)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def small(folder: Path) -> Iterator[TextEngine]:
    """Steps overlap, and the cache is too small for all rows."""
    engine, _ = load(folder, step_tokens=16, kv_cache_bytes=28 * BLOCK_BYTES, text=ON)
    yield engine
    engine.close()


def mixed_jobs() -> list[TextJob]:
    jobs = [
        job(f"s{n}", LONG if n % 3 == 0 else "one two", **one) for n, one in enumerate(SETTINGS)
    ]
    several = job("several", "three four", temperature=1.0, seed=11)
    jobs.append(msgspec.structs.replace(several, n=2, best_of=3, stream=False))
    scored = job("scored", LONG, logprobs=1, max_tokens=3)
    jobs.append(msgspec.structs.replace(scored, echo=True))
    held = job("held", "five", temperature=1.0, seed=12, ignore_eos=False)
    grammar = Grammar(kind="choice", source='["yes", "no", "perhaps"]')
    jobs.append(msgspec.structs.replace(held, grammar=grammar))
    for each in range(len(jobs)):  # each key's texts may share their beginnings
        jobs[each] = msgspec.structs.replace(jobs[each], prefix_scope="key")
    return jobs


@pytest.fixture(scope="module")
def alone(plain: TextEngine) -> dict[str, TextDone]:
    """Provide the answers of the mixed jobs, each made by itself and step by step."""
    return {one.id: run(plain, one)[one.id] for one in mixed_jobs()}


def told(end: TextDone) -> list[Any]:
    """Return what of an answer is the same in any company: rounding and reuse are not."""
    texts = [
        (each.text, each.finish_reason, each.stop, [one.id for one in each.logprobs])
        for each in end.choices
    ]
    return [texts, end.prompt_tokens, end.completion_tokens]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["overlapped", "small"])
def test_overlap_changes_no_answer_in_any_company(
    alone: dict[str, TextDone], name: str, seed: int, request: pytest.FixtureRequest
) -> None:
    """Random arrivals and cancels; tokens that a step discards are neither sent nor charged."""
    engine: TextEngine = request.getfixturevalue(name)
    chance = random.Random(seed)
    jobs = mixed_jobs()
    noise = [job(f"noise{n}", LONG, temperature=1.0, seed=n, max_tokens=40) for n in range(3)]
    waiting = jobs + noise
    chance.shuffle(waiting)
    events: list[Event] = []
    while waiting:
        submit(engine, waiting.pop())
        for _ in range(chance.randint(0, 2)):
            events += engine.step()
        if chance.random() < 0.3:
            engine.cancel(f"noise{chance.randrange(3)}")
    for one in noise:
        engine.cancel(one.id)
    events += run_to_end(engine)
    ends = done(events)
    for one in jobs:
        end, expected = ends[one.id], alone[one.id]
        assert told(end) == told(expected)
        texts = "".join(e.text for e in events if isinstance(e, TextDelta) and e.id == one.id)
        assert texts == ("" if not one.stream else end.text)
        for mine, theirs in zip(end.choices, expected.choices, strict=True):
            for own, other in zip(mine.logprobs, theirs.logprobs, strict=True):
                assert own.logprob == pytest.approx(other.logprob, abs=1e-3)


def test_overlap_queues_a_step_before_the_tokens_are_known(overlapped: TextEngine) -> None:
    submit(overlapped, job("one", max_tokens=3))
    texts = []
    while overlapped.in_flight:
        texts.append("".join(e.text for e in overlapped.step() if isinstance(e, TextDelta)))
    assert len(texts) == 4, "the first step tells nothing, and the last computes nothing"
    assert not texts[0]
    assert not any(overlapped.books().values())


def test_overlap_ends_where_there_is_too_little_memory_to_preempt(small: TextEngine) -> None:
    schedule, landed = Scheduler.schedule, 0

    def counted(self: Scheduler, **how: bool) -> Any:
        nonlocal landed
        try:
            return schedule(self, **how)
        except MustLand:
            landed += 1
            raise

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scheduler, "schedule", counted)
        run(small, *(job(str(n), "one two three", max_tokens=60) for n in range(3)))
    assert landed, "there was room for all"


def test_overlap_computes_again_what_the_host_decides(
    plain: TextEngine, overlapped: TextEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A nucleus larger than the first candidates is known too late for the next step."""
    jobs = [
        job(str(n), temperature=5.0, top_p=0.999, seed=n, frequency_penalty=0.9) for n in range(3)
    ]
    alone = {one.id: run(plain, one)[one.id] for one in jobs}
    retract, again = Scheduler.retract, Counter[str]()

    def counted(self: Scheduler, sequence: Any) -> None:
        again[sequence.id] += 1
        retract(self, sequence)

    monkeypatch.setattr(Scheduler, "retract", counted)
    assert run(overlapped, *jobs) == alone
    assert sum(again.values()) > 3


def test_overlap_without_memory_to_decide_fails_that_request_only(
    overlapped: TextEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = run(overlapped, job("good", max_tokens=30))["good"].text

    def fail(_self: Draw, _rows: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Draw, "choose_again", fail)
    events = run_to_end(overlapped, job("good", max_tokens=30), job("wide", **WIDE, seed=1))
    failures = [(each.id, each.code) for each in events if isinstance(each, Failed)]
    assert failures == [("wide", "OUT_OF_MEMORY")]
    assert done(events)["good"].text == alone


def test_overlap_computes_a_step_without_memory_in_parts(
    alone: dict[str, TextDone], overlapped: TextEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch, calls = overlapped._runner.launch, 0

    def launch_or_fail(plan: Any, carry: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 3 == 0 and len(plan.chunks) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return launch(plan, carry)

    monkeypatch.setattr(overlapped._runner, "launch", launch_or_fail)
    ends = run(overlapped, *mixed_jobs())
    assert {name: told(end) for name, end in ends.items()} == {
        name: told(end) for name, end in alone.items()
    }


def test_overlap_zeroes_what_a_discarded_step_has_written(tmp_path: Path) -> None:
    """The token that ends a text goes into a step, and makes what is no number there."""
    model = make_poisoned_model(tmp_path)
    engine, _ = load(model, kv_cache_bytes=7 * BLOCK_BYTES, text=ON)
    last: dict[str, Any] = {"logit_bias": {poison_id(): 100.0}, "stop_token_ids": (poison_id(),)}
    alone = run(engine, job("good"))["good"]
    for number in range(4):  # the place in the block differs
        ends = run(engine, job("ends", "one two" + " T" * number, max_tokens=4, **last))
        assert ends["ends"].choices[0].finish_reason == "stop"
        assert run(engine, job("good"))["good"] == alone
    engine.close()


def test_overlap_cancel_takes_effect_in_the_next_step(overlapped: TextEngine) -> None:
    submit(overlapped, job("a", max_tokens=50), job("b", max_tokens=50))
    step_until(overlapped, lambda events: len(events) > 8)
    overlapped.cancel("a")
    events = overlapped.step()
    ends = finals(events)
    assert list(ends) == ["a"]
    assert isinstance(ends["a"], Cancelled)
    assert [each for each in events if getattr(each, "id", "") == "a"][-1] is ends["a"]
    overlapped.cancel("b")
    run_to_end(overlapped)


# ---- what a card would wait for --------------------------------------------------------------

#: Operations that read the device, or whose results' sizes only it knows.
WAITING = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal", "allclose"}
WAITING |= {"_unique2", "unique_dim", "unique_consecutive", "bincount", "item"}


class NoReads(TorchDispatchMode):
    """Fails on an operation that a card's host would have to wait in."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in WAITING, f"{name} waits for the device"
        if name in ("index", "index_put", "index_put_"):
            masks = [each for each in args[1] if each is not None and each.dtype == torch.bool]
            assert not masks, f"{name} by a mask waits for the device"
        if name == "repeat_interleave":
            assert not isinstance(args[-1], torch.Tensor), f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


def test_overlap_reads_nothing_back_but_one_copy_a_step(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forbid reads while a step is queued: on a CPU they would not wait."""
    engine, _ = load(folder, step_tokens=16, text=ON)
    queue, copies, steps = engine._runner.launch, 0, 0
    launcher = engine._pipeline._launcher
    launch = launcher.launch

    def forbidden(*_args: Any, **_settings: Any) -> Any:
        raise AssertionError("the host reads a tensor")

    def launched(*args: Any) -> Any:
        nonlocal steps
        steps += 1
        with pytest.MonkeyPatch.context() as patch, NoReads():  # type: ignore[no-untyped-call]  # torch's class
            for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__"):
                patch.setattr(torch.Tensor, name, forbidden)
            return launch(*args)

    whole = host_copy.HostCopy.__init__

    def counted(self: host_copy.HostCopy, tensor: torch.Tensor) -> None:
        nonlocal copies
        copies += 1
        whole(self, tensor)

    monkeypatch.setattr(host_copy.HostCopy, "__init__", counted)
    monkeypatch.setattr(launcher, "launch", launched)
    run(engine, *(job(f"s{n}", **one) for n, one in enumerate(SETTINGS)))
    assert queue == engine._runner.launch
    assert steps > 10
    assert copies == steps, "one copy brings all rows' tokens and log-probabilities"
    engine.close()
