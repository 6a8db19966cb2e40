"""Usage of jobs is estimated and counted by kind, and by how they ended."""

from pathlib import Path

import pytest

from bitinglip.access.usage.amounts import MILLION, NOTHING, Amounts, Units
from bitinglip.scheduling.event_log import EventLog
from bitinglip.scheduling.job import Job
from bitinglip.scheduling.kinds import cost
from bitinglip.scheduling.usage import most_used, used
from tests.support.jobs import text_job
from workers import protocol

IMAGES = protocol.ImageJob(
    id="i", prompt="p", width=100, height=200, steps=4, seeds=(1, 2, 3), folder=str(Path())
)
SPEECH = protocol.SpeechJob(id="s", text="x" * 30, seed=1, folder=str(Path()))
HEARD = protocol.TranscriptionJob(id="t", path="p", max_seconds=60.0)
TEXT = text_job("hé llo", max_tokens=50, name="x", stream=True).work
EMBEDDED = protocol.EmbeddingJob(id="e", texts=("one", "x" * 9000))
FIRST = protocol.AudioDelta(id="s", index=0, samples=b"\0" * 16_000, sample_rate=16_000)


def envelope(work: protocol.Job, file_bytes: int = 0) -> Job:
    return Job(work=work, model="m", key_id="k", file_bytes=file_bytes)


def charged(work: protocol.Job, *events: protocol.JobEvent, read: bool = True) -> Amounts:
    """Return what a job with these events, the last of them final, has used."""
    event_log = EventLog(envelope(work))
    event_log.dispatch("m/0")
    for event in events:
        event_log.put(event)
    event_log.output_seen = read and event_log.first_token is not None
    last = event_log.final
    assert last is not None
    return used(event_log, last, 7)


def segment(end: float) -> protocol.SegmentDelta:
    heard = protocol.Segment(
        start=0,
        end=end,
        text="a",
        tokens=(),
        avg_logprob=0,
        no_speech_prob=0,
        temperature=0,
        compression_ratio=1,
    )
    return protocol.SegmentDelta(id="t", segment=heard, index=0)


@pytest.mark.parametrize(
    ("work", "file_bytes", "expected"),
    [
        (TEXT, 0, (1, 7 + 16 + 50, 0, 0, 9)),
        (IMAGES, 0, (1, 0, 60_000, 0, 9)),
        (SPEECH, 0, (1, 0, 0, 2 * MILLION, 9)),
        (HEARD, 32_000, (1, 0, 0, 2 * MILLION, 9)),
        (HEARD, 10**9, (1, 0, 0, 60 * MILLION, 9)),
        (EMBEDDED, 0, (1, 3 + 16 + 4096, 0, 0, 9)),
    ],
)
def test_usage_is_estimated_by_kind(work: protocol.Job, file_bytes: int, expected: Units) -> None:
    assert most_used(envelope(work, file_bytes), context=4096, gpu_us=9) == expected


def test_usage_of_text_is_estimated_within_the_context() -> None:
    endless = text_job("p", max_tokens=1_000_000)
    assert most_used(endless, context=2048, gpu_us=0)[1] == 2048
    assert most_used(endless, context=None, gpu_us=0)[1] > 1_000_000


def test_usage_of_several_texts_counts_each_prompt_once_and_all_texts() -> None:
    sampling = protocol.Sampling(max_tokens=50)
    work = protocol.TextJob(
        id="x", prompts=("abcd", (1, 2)), sampling=sampling, n=2, best_of=3, stream=True
    )
    tokens = (16 + 4) + (16 + 2) + 6 * 50
    assert most_used(envelope(work), context=4096, gpu_us=0)[1] == tokens
    assert most_used(envelope(work), context=40, gpu_us=0)[1] == 2 * 3 * 40
    assert cost(envelope(work)) == 1 + 2 + 6 * 50
    parts = [
        protocol.TextDelta(id="x", text="a", index=index, choice=choice)
        for index, choice in [(0, 0), (0, 3), (4, 3), (2, 0), (1, 1)]
    ]
    gone = protocol.Cancelled(id="x")
    used = charged(work, protocol.Started(id="x", prompt_tokens=6), *parts, gone)
    assert (used.prompt_tokens, used.completion_tokens) == (6, 3 + 5 + 2)


def test_usage_of_vectors_is_estimated_with_the_longest_prompt_of_the_model() -> None:
    job = envelope(protocol.EmbeddingJob(id="e", texts=("one", "two"), prompt_name="query"))
    plain = most_used(job, context=None, gpu_us=0)[1]
    assert most_used(job, context=None, gpu_us=0, prompt_bytes=70)[1] == plain + 2 * 70
    assert most_used(job, context=40, gpu_us=0, prompt_bytes=70)[1] == 2 * 40


@pytest.mark.parametrize("text", ["a b c", "héllo wörld", "日本語", "🙂" * 9, "\ud800"])
def test_usage_of_text_is_estimated_at_a_token_a_byte(text: str) -> None:
    most = most_used(text_job(text, max_tokens=1), context=None, gpu_us=0)[1]
    assert most > len(text.encode("utf-8", "surrogatepass"))


def test_usage_of_messages_is_estimated_with_all_that_templates_may_write() -> None:
    call = protocol.ToolCall(id="c", name="n" * 40, arguments="a" * 50)
    whole = protocol.ChatMessage(
        "assistant", "c" * 30, "x" * 10, tool_calls=(call,), reasoning="r" * 20
    )

    def most(message: protocol.ChatMessage) -> int:
        sampling = protocol.Sampling(max_tokens=1)
        work = protocol.TextJob(id="x", messages=(message,), sampling=sampling)
        return most_used(envelope(work), context=None, gpu_us=0)[1]

    assert most(whole) - most(protocol.ChatMessage("user", "")) == 30 + 10 + 20 + 40 + 50 + 16


def test_usage_of_what_is_done_is_what_was_made() -> None:
    text = protocol.TextDone(
        id="x",
        choices=(protocol.TextChoice(text="a", finish_reason="stop"),),
        prompt_tokens=3,
        completion_tokens=4,
    )
    assert charged(TEXT, text) == Amounts(1, 3, 4, gpu_us=7)
    image = protocol.ImageFile(width=100, height=200, seed=1, format="png", bytes=1)
    images = protocol.ImageDone(id="i", images=(image,) * 3, steps=4, scheduler="x")
    assert charged(IMAGES, images) == Amounts(1, pixels=60_000, gpu_us=7)
    speech = protocol.SpeechDone(
        id="s", format="wav", bytes=1, sample_rate=16_000, duration=1.25, sentences=1
    )
    assert charged(SPEECH, FIRST, speech) == Amounts(1, audio_us=1_250_000, gpu_us=7)
    heard = protocol.TranscriptionDone(id="t", text="a", language="en", duration=2.5, segments=())
    assert charged(HEARD, segment(2), heard) == Amounts(1, audio_us=2_500_000, gpu_us=7)
    vectors = protocol.EmbeddingDone(id="e", vectors=b"", dimensions=4, prompt_tokens=9)
    assert charged(EMBEDDED, vectors) == Amounts(1, 9, gpu_us=7)


def test_usage_of_what_was_cancelled_is_what_was_made_by_then() -> None:
    told = protocol.Cancelled(id="x", prompt_tokens=3, completion_tokens=9)
    assert charged(TEXT, told) == Amounts(1, 3, 9, gpu_us=7)
    started = protocol.Started(id="x", prompt_tokens=3)
    delta = protocol.TextDelta(id="x", text="a", index=4)
    assert charged(TEXT, started, delta, protocol.Cancelled(id="x")) == Amounts(1, 3, 5, gpu_us=7)
    cut = charged(IMAGES, protocol.Cancelled(id="i", steps=3))
    assert cut == Amounts(1, pixels=45_000, gpu_us=7), "three of four steps"
    half = protocol.Progress(id="i", step=1, steps=2)
    cut = charged(IMAGES, half, protocol.Cancelled(id="i", steps=9))
    assert cut == Amounts(1, pixels=60_000, gpu_us=7), "no more than all"
    cut = charged(SPEECH, FIRST, FIRST, protocol.Cancelled(id="s"))
    assert cut == Amounts(1, audio_us=MILLION, gpu_us=7)
    cut = charged(HEARD, segment(1.5), segment(2.25), protocol.Cancelled(id="t"))
    assert cut == Amounts(1, audio_us=2_250_000, gpu_us=7)


def test_usage_of_what_failed_depends_on_whose_fault_it_was() -> None:
    started = protocol.Started(id="x", prompt_tokens=3)
    delta = protocol.TextDelta(id="x", text="a", index=4)

    def failed(code: str, *before: protocol.JobEvent, read: bool = True) -> Amounts:
        last = protocol.Failed(id="x", code=code, message="m")  # type: ignore[arg-type]
        return charged(TEXT, *before, last, read=read)

    assert failed("CONTEXT_LENGTH_EXCEEDED") == Amounts(1, gpu_us=7)
    assert failed("INFERENCE_FAILED", started) == NOTHING
    assert failed("WORKER_CRASHED", started, delta, read=False) == NOTHING
    assert failed("WORKER_CRASHED", started, delta) == Amounts(0, 3, 5)
    assert failed("TIMEOUT", started, delta) == Amounts(1, 3, 5, gpu_us=7)
    late = protocol.Failed(
        id="x", code="INVALID_REQUEST", message="m", prompt_tokens=3, completion_tokens=9
    )
    assert charged(TEXT, started, late) == Amounts(1, 3, 9, gpu_us=7), "found out at its end"


def test_usage_of_what_no_worker_had_is_nothing() -> None:
    event_log = EventLog(envelope(TEXT))
    event_log.put(protocol.Cancelled(id="x"))
    assert used(event_log, protocol.Cancelled(id="x"), 0) == NOTHING
