"""Texts that are computed together: nothing of one key's comes into another's answer."""

import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tests.support.engine_runs import finals, submit
from tests.support.models.text import make_tiny_model
from tests.support.text_harness import job, load, run
from workers.engines.text.engine import TextEngine
from workers.protocol import Cancelled, Event, TextDelta, TextDone, TextJob

RUNS = 1000
MOST_AT_ONCE = 24
CANARIES = {"a": "zebra-4711", "b": "walrus-0815"}  #: what the prompts of each key hold


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextEngine]:
    folder = make_tiny_model("llama", tmp_path_factory.mktemp("models") / "llama")
    engine, _ = load(folder, max_batch=MOST_AT_ONCE)
    yield engine
    engine.close()


def asked(key: str, number: int, name: str) -> TextJob:
    """Return a job whose answer begins with its prompt; each second one samples, with its own
    seed."""
    prompt = "Repeat this. " * (number % 3) + f"{CANARIES[key]} {number}"
    drawn: dict[str, Any] = {"temperature": 1.0, "seed": number} if number % 2 else {}
    one = job(name, prompt, max_tokens=4, **drawn)
    return msgspec.structs.replace(one, echo=True, prefix_scope=key)


def test_batched_answers_of_two_keys_hold_nothing_of_each_other(engine: TextEngine) -> None:
    kinds = [(key, number) for key in CANARIES for number in range(8)]
    alone = {}
    for key, number in kinds:
        name = f"{key}{number}"
        alone[key, number] = run(engine, asked(key, number, name))[name].text
        assert alone[key, number].startswith(asked(key, number, name).prompt or "-")
    draw = random.Random(54)
    waiting = {str(run): draw.choice(kinds) for run in range(RUNS)}
    sent: dict[str, tuple[str, int]] = {}
    events: list[Event] = []
    while waiting or engine.in_flight:
        for name in list(waiting)[: draw.randint(0, MOST_AT_ONCE - engine.in_flight)]:
            sent[name] = waiting.pop(name)
            submit(engine, asked(*sent[name], name))
        if draw.random() < 0.1 and sent:
            engine.cancel(draw.choice(list(sent)[-MOST_AT_ONCE:]))
        events += engine.step()
    assert not any(engine.books().values())
    ends = finals(events)
    assert ends.keys() == sent.keys()
    answered = {name: end for name, end in ends.items() if isinstance(end, TextDone)}
    assert len(answered) > RUNS * 0.9
    for name, end in answered.items():
        key, number = sent[name]
        assert end.text == alone[key, number]
        assert not [other for other in CANARIES if other != key and CANARIES[other] in end.text]
    assert {type(end) for end in ends.values()} <= {TextDone, Cancelled}
    said = dict.fromkeys(sent, "")
    for event in events:
        if isinstance(event, TextDelta):
            said[event.id] += event.text
    for name, text in said.items():  # also of those that were cancelled
        assert alone[sent[name]].startswith(text)
