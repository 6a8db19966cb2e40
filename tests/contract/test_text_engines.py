"""The contract of both text engines, fake and real, beyond that of all engines."""

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from model_store.demo import make_demo_models
from model_store.store import ModelStore
from tests.support.engine_runs import step_until
from workers.engines.base import Engine, Refused
from workers.engines.registry import make_engine
from workers.protocol import (
    Cancelled,
    ChatMessage,
    Event,
    FakeOptions,
    Load,
    Ready,
    Sampling,
    Started,
    TextDelta,
    TextDone,
    TextJob,
)

MODELS = {"fake": "demo-echo", "text": "demo-text"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    store = ModelStore(tmp_path_factory.mktemp("models"))
    make_demo_models(store)
    return store


class Loaded:
    """Holds an engine with its demo model, and the events it has produced."""

    def __init__(self, kind: str, path: Path) -> None:
        self.engine: Engine = make_engine(kind)
        self.progress: list[float] = []
        spec = Load(
            model=kind,
            engine=kind,
            path=str(path),
            dtype=None if kind == "fake" else "float32",
            max_context=512,
            kv_cache_bytes=None if kind == "fake" else 4 << 20,
            fake=FakeOptions(),
        )
        self.ready: Ready = self.engine.load(spec, self.progress.append)

    def submit(self, job: TextJob) -> None:
        self.engine.submit(self.engine.prepare(job))

    def run(self, until: Callable[[list[Event]], bool] | None = None) -> list[Event]:
        """Step until nothing runs, or until the events so far say stop."""
        return step_until(self.engine, until or (lambda _: False))


@pytest.fixture(scope="module", params=sorted(MODELS))
def module_engine(request: pytest.FixtureRequest, store: ModelStore) -> Iterator[Loaded]:
    loaded = Loaded(request.param, store.path(MODELS[request.param]))
    yield loaded
    loaded.engine.close()


@pytest.fixture
def loaded(module_engine: Loaded) -> Iterator[Loaded]:
    yield module_engine
    assert module_engine.engine.in_flight == 0
    assert not any(module_engine.engine.books().values()), "something is still held"


def job(
    name: str = "j", *, prompt: str = "one two three", stream: bool = True, **sampling: object
) -> TextJob:
    settings = Sampling(**{"max_tokens": 6, "ignore_eos": True, **sampling})  # type: ignore[arg-type]
    return TextJob(id=name, prompt=prompt, sampling=settings, stream=stream)


def done_of(events: list[Event], name: str = "j") -> TextDone:
    finals = [e for e in events if isinstance(e, TextDone | Cancelled) and e.id == name]
    assert len(finals) == 1, "exactly one final event"
    assert isinstance(finals[0], TextDone)
    return finals[0]


def streamed(events: list[Event], name: str = "j") -> str:
    return "".join(e.text for e in events if isinstance(e, TextDelta) and e.id == name)


def test_load_tells_slots_and_context(loaded: Loaded) -> None:
    assert loaded.ready.slots >= 1
    assert loaded.ready.max_context is not None
    assert 0 < loaded.ready.max_context <= 512
    assert loaded.progress[-1] == pytest.approx(1.0)
    assert loaded.progress == sorted(loaded.progress)


def test_job_starts_streams_and_ends_once(loaded: Loaded) -> None:
    loaded.submit(job())
    events = loaded.run()
    assert isinstance(events[0], Started)
    assert events[0].prompt_tokens >= 3
    done = done_of(events)
    assert events[-1] is done
    assert done.completion_tokens == 6
    assert done.choices[0].finish_reason == "length"
    assert done.prompt_tokens == events[0].prompt_tokens
    assert streamed(events) == done.text != ""
    indices = [e.index for e in events if isinstance(e, TextDelta)]
    assert indices == sorted(set(indices))
    assert indices[-1] <= 5


def test_stream_off_leaves_only_the_final_event(loaded: Loaded) -> None:
    loaded.submit(job())
    whole = done_of(loaded.run()).text
    loaded.submit(job(stream=False))
    events = loaded.run()
    assert not [e for e in events if isinstance(e, TextDelta)]
    assert done_of(events).text == whole


def test_batch_of_many_jobs_gives_each_its_own_answer(loaded: Loaded) -> None:
    jobs = [
        job(f"j{n}", prompt=f"number {n} " * (1 + n % 5), max_tokens=1 + n % 7) for n in range(12)
    ]
    alone = {}
    for one in jobs:
        loaded.submit(one)
        alone[one.id] = done_of(loaded.run(), one.id)
    for one in jobs:
        loaded.submit(one)
    events = loaded.run()
    assert {one.id: done_of(events, one.id) for one in jobs} == alone


def test_cancel_ends_a_job_at_the_next_step_and_its_neighbour_goes_on(loaded: Loaded) -> None:
    loaded.submit(job("a", max_tokens=100))
    loaded.submit(job("b", max_tokens=8))
    loaded.run(until=lambda events: len([e for e in events if isinstance(e, TextDelta)]) >= 2)
    loaded.engine.cancel("a")
    events = loaded.engine.step()
    assert [e.id for e in events if isinstance(e, Cancelled)] == ["a"]
    rest = loaded.run()
    assert not [e for e in rest if not isinstance(e, Started) and e.id == "a"]  # type: ignore[union-attr]
    assert done_of(rest, "b").completion_tokens == 8


def test_cancel_of_an_unknown_job_does_nothing(loaded: Loaded) -> None:
    loaded.engine.cancel("nobody")
    loaded.submit(job())
    assert done_of(loaded.run()).completion_tokens == 6


def test_choices_of_several_prompts_come_in_order_and_count_together(loaded: Loaded) -> None:
    prompts = ("one two three", "four")
    alone = []
    for prompt in prompts:
        loaded.submit(job(prompt=prompt))
        alone.append(done_of(loaded.run()))
    several = msgspec.structs.replace(job(), prompt=None, prompts=prompts, n=2, echo=True)
    loaded.submit(several)
    events = loaded.run()
    done = done_of(events)
    expected = [each.text for each in alone for _ in range(2)]
    echoed = [prompt for prompt in prompts for _ in range(2)]
    whole = [prompt + text for prompt, text in zip(echoed, expected, strict=True)]
    assert [choice.text for choice in done.choices] == whole
    assert done.prompt_tokens == sum(each.prompt_tokens for each in alone)
    assert done.completion_tokens == 2 * sum(each.completion_tokens for each in alone)
    deltas = [event for event in events if isinstance(event, TextDelta)]
    for number, text in enumerate(whole):
        assert "".join(each.text for each in deltas if each.choice == number) == text
    loaded.submit(msgspec.structs.replace(several, best_of=3, stream=False))
    best = done_of(loaded.run())
    assert len(best.choices) == 4
    assert best.completion_tokens == 3 * sum(each.completion_tokens for each in alone)


def test_stop_sequence_ends_the_answer_and_is_not_in_it(loaded: Loaded) -> None:
    loaded.submit(job(max_tokens=12))
    whole = done_of(loaded.run()).text
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    loaded.submit(job(max_tokens=12, stop=(stop,)))
    events = loaded.run()
    done = done_of(events)
    assert done.choices[0].finish_reason == "stop"
    assert done.text == whole[: whole.index(stop)] == streamed(events)


def test_context_that_does_not_suffice_is_refused_or_clipped(loaded: Loaded) -> None:
    context = loaded.ready.max_context or 0
    with pytest.raises(Refused) as refusal:
        loaded.engine.prepare(job(max_tokens=context))
    assert refusal.value.code == "CONTEXT_LENGTH_EXCEEDED"
    assert refusal.value.param == "max_tokens"
    with pytest.raises(Refused) as refusal:
        loaded.engine.prepare(job(prompt="word " * context, max_tokens=1))
    assert refusal.value.param == "prompt"
    clipped = TextJob(
        id="j",
        prompt="one two",
        sampling=Sampling(max_tokens=100_000, ignore_eos=True),
        clip_max_tokens=True,
        stream=False,
    )
    loaded.submit(clipped)
    done = done_of(loaded.run())
    assert done.prompt_tokens + done.completion_tokens == context


def test_messages_are_answered(loaded: Loaded) -> None:
    chat = TextJob(
        id="j",
        messages=(ChatMessage("system", "Be brief."), ChatMessage("user", "hello there")),
        sampling=Sampling(max_tokens=4, ignore_eos=True),
    )
    loaded.submit(chat)
    assert done_of(loaded.run()).completion_tokens == 4


def test_characters_of_several_bytes_are_never_halved(loaded: Loaded) -> None:
    loaded.submit(job(prompt="żółć 漢字 🦊 " * 3, max_tokens=40))
    events = loaded.run()
    assert streamed(events) == done_of(events).text


def test_memory_of_the_device_is_told_in_bytes(module_engine: Loaded) -> None:
    held = module_engine.engine.device_bytes()
    assert held is None or held >= 0
