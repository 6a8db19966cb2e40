"""Costs of jobs by their kind, and their affinity."""

import pytest

from bitinglip.scheduling.job import Job
from bitinglip.scheduling.kinds import affinity, cost, cost_done
from tests.support.jobs import text_job
from workers import protocol

IMAGE = Job(
    work=protocol.ImageJob(
        id="i", prompt="p", width=1000, height=2000, steps=10, seeds=(1, 2, 3), folder="f"
    ),
    model="m",
    key_id="k",
)
SPEECH = Job(
    work=protocol.SpeechJob(id="s", text="x" * 30, seed=1, folder="f", voice="v"),
    model="m",
    key_id="k",
)


def transcription(file_bytes: int) -> Job:
    work = protocol.TranscriptionJob(id="t", path="p", max_seconds=60)
    return Job(work=work, model="m", key_id="k", file_bytes=file_bytes)


def test_cost_is_in_the_unit_of_the_kind() -> None:
    assert cost(text_job("x" * 40, max_tokens=5)) == 15  # tokens
    assert cost(IMAGE) == 60  # megapixels times steps
    assert cost(SPEECH) == 2  # seconds
    assert cost(transcription(160_000)) == 10
    assert cost(transcription(10**9)) == 60  # a longer file is refused


def test_cost_of_messages_counts_what_they_hold() -> None:
    turns = (protocol.ChatMessage("user", "x" * 8), protocol.ChatMessage("user", "x" * 4))
    work = protocol.TextJob(id="j", messages=turns, sampling=protocol.Sampling(max_tokens=1))
    assert cost(Job(work=work, model="m", key_id="k")) == 4


def test_cost_done_is_what_the_final_event_says() -> None:
    cancelled = protocol.Cancelled(id="j", prompt_tokens=3, completion_tokens=4, steps=2)
    assert cost_done(text_job(), cancelled) == 7
    assert cost_done(IMAGE, cancelled) == 12
    spoken = protocol.SpeechDone(
        id="s", format="wav", bytes=1, sample_rate=8000, duration=2.5, sentences=1
    )
    assert cost_done(SPEECH, spoken) == 2.5
    heard = protocol.TranscriptionDone(id="t", text="", language=None, duration=7.5, segments=())
    assert cost_done(transcription(16_000), heard) == 7.5


@pytest.mark.parametrize("job", [SPEECH, transcription(16_000)], ids=["speech", "transcription"])
def test_cost_done_of_cancelled_audio_is_the_estimate(job: Job) -> None:
    assert cost_done(job, protocol.Cancelled(id="x")) == cost(job)


def test_affinity_is_the_same_for_jobs_that_begin_alike() -> None:
    same = affinity(text_job("s" * 2000 + "a"))
    assert same == affinity(text_job("s" * 2000 + "b"))
    assert same != affinity(text_job("s" * 2000 + "a", key_id="other"))


def test_affinity_of_audio_follows_voice_and_file() -> None:
    other = protocol.SpeechJob(id="o", text="y", seed=2, folder="f", voice="v")
    assert affinity(SPEECH) == affinity(Job(work=other, model="m", key_id="k"))
    assert affinity(SPEECH) != affinity(transcription(1))
