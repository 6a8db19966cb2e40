"""The memory of inputs and events is counted in the bytes that Python takes."""

from sys import getsizeof

import pytest

from bitinglip.errors import QueueFull
from bitinglip.scheduling.dispatch.input_memory import InputMemory
from bitinglip.scheduling.job import Job
from bitinglip.scheduling.kinds import input_bytes, without_input
from bitinglip.scheduling.memory import event_bytes
from tests.support.jobs import text_job
from workers import protocol

LONG = "\N{GRINNING FACE}" + "x" * 1_000_000  # one wide character makes all of them wide

MESSAGES: list[protocol.Job] = [
    protocol.TextJob(id="j", prompt=LONG, sampling=protocol.Sampling(max_tokens=1)),
    protocol.TextJob(
        id="j",
        messages=(protocol.ChatMessage("user", LONG),),
        sampling=protocol.Sampling(max_tokens=1),
    ),
    protocol.TextJob(
        id="j",
        messages=(protocol.ChatMessage("user", "a"),),
        sampling=protocol.Sampling(max_tokens=1),
        template_kwargs={"a": LONG},
    ),
    protocol.TextJob(
        id="j",
        prompt="a",
        sampling=protocol.Sampling(max_tokens=1),
        grammar=protocol.Grammar(kind="regex", source=LONG),
    ),
    protocol.ImageJob(
        id="j", prompt="p", negative_prompt=LONG, width=8, height=8, steps=1, seeds=(1,), folder="f"
    ),
    protocol.TranscriptionJob(id="j", path="p", prompt=LONG, max_seconds=1),
]


@pytest.mark.parametrize("work", MESSAGES, ids=lambda work: type(work).__name__)
def test_input_bytes_are_those_of_the_strings(work: protocol.Job) -> None:
    job = Job(work=work, model="m", key_id="k")
    assert input_bytes(job) >= 4_000_000
    assert input_bytes(without_input(job)) < 1000


def test_input_of_speech_stays_for_its_usage() -> None:
    work = protocol.SpeechJob(id="j", text="said", seed=1, folder="f")
    job = Job(work=work, model="m", key_id="k")
    assert without_input(job).work == work
    assert input_bytes(job) == getsizeof("said")


@pytest.mark.parametrize(
    ("event", "least"),
    [
        (protocol.TextDelta(id="j", text=LONG, index=0), 4_000_000),
        (protocol.AudioDelta(id="j", index=0, samples=b"x" * 5000, sample_rate=8000), 5000),
        (protocol.Progress(id="j", step=1, steps=2, preview=b"x" * 5000), 5000),
        (
            protocol.TextDelta(
                id="j",
                text="a",
                index=0,
                logprobs=(
                    protocol.TokenLogprob(
                        token="a", id=1, logprob=-1.0, top=tuple(("b", 2, -2.0) for _ in range(20))
                    ),
                ),
            ),
            3000,
        ),
    ],
)
def test_event_bytes_count_payloads(event: protocol.JobEvent, least: int) -> None:
    assert least <= event_bytes([event]) < 2 * least + 1000


def test_input_memory_is_bounded_by_key_and_in_all() -> None:
    memory = InputMemory(100)
    memory.take("a", 40)
    with pytest.raises(QueueFull, match="this key"):
        memory.take("a", 20)
    memory.take("b", 40)
    with pytest.raises(QueueFull, match="too much input"):
        memory.take("c", 30)
    memory.give_back("b", 40)
    memory.take("c", 30)
    for key, size in (("a", 40), ("c", 30)):
        memory.give_back(key, size)
    assert memory.bytes == 0


def test_input_memory_takes_any_input_that_is_alone() -> None:
    memory = InputMemory(100)
    memory.take("a", 500)
    with pytest.raises(QueueFull):
        memory.take("b", 1)


def test_input_memory_counts_bodies_while_they_arrive() -> None:
    memory = InputMemory(100)
    with memory.growing("a") as grow, memory.growing("a") as second:
        grow(20)
        second(20)
        with pytest.raises(QueueFull, match="this key"):
            grow(20)
        memory.check("a", 10, 20)  # its own part does not stand in its way
        assert memory.bytes == 40
    assert memory.bytes == 0
    with memory.growing("a") as grow:
        grow(60)
        grow(60)  # alone
        with pytest.raises(QueueFull, match="too much input"), memory.growing("b") as other:
            other(1)
    assert memory.bytes == 0


def test_input_bytes_of_jobs_are_counted_in_characters_as_python_keeps_them() -> None:
    assert input_bytes(text_job("x" * 1000)) < 1200
