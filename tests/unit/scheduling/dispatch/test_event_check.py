"""Checks of a worker's events: their kind, and their bounds."""

import msgspec
import pytest

from bitinglip.scheduling.dispatch.event_check import EventCheck
from bitinglip.scheduling.job import Job, kind_of
from bitinglip.scheduling.kinds import cost
from workers import protocol
from workers.framing import BadFrame

TEXT = protocol.TextJob(id="j", prompt="p", sampling=protocol.Sampling(max_tokens=100))
IMAGE = protocol.ImageJob(id="j", prompt="p", width=64, height=64, steps=2, seeds=(1, 2), folder="")
SPEECH = protocol.SpeechJob(id="j", text="p", seed=1, folder="")
HEARD = protocol.TranscriptionJob(id="j", path="", max_seconds=60.0)
PICTURE = protocol.ImageFile(width=64, height=64, seed=1, format="png", bytes=1)
FINALS: dict[str, protocol.Success] = {
    "text": protocol.TextDone(
        id="j",
        choices=(protocol.TextChoice(text="", finish_reason="stop"),),
        prompt_tokens=1,
        completion_tokens=1,
    ),
    "image": protocol.ImageDone(id="j", images=(PICTURE,) * 2, steps=2, scheduler="s"),
    "speech": protocol.SpeechDone(
        id="j", format="wav", bytes=1, sample_rate=24_000, duration=1.0, sentences=1
    ),
    "transcription": protocol.TranscriptionDone(
        id="j", text="", language=None, duration=1.0, segments=()
    ),
}


def check(job: protocol.Job) -> EventCheck:
    enveloped = Job(work=job, model="m", key_id="k")
    return EventCheck(enveloped, cost(enveloped))


@pytest.mark.parametrize("job", [TEXT, IMAGE, SPEECH, HEARD], ids=lambda job: kind_of(type(job)))
def test_event_of_another_kind_is_refused(job: protocol.Job) -> None:
    for kind, final in FINALS.items():
        if kind == kind_of(type(job)):
            check(job).take(final)
        else:
            with pytest.raises(BadFrame, match=f"for a {type(job).__name__}"):
                check(job).take(final)
    check(job).take(protocol.Failed(id="j", code="INFERENCE_FAILED", message=""))
    check(job).take(protocol.Cancelled(id="j"))


def test_event_of_a_choice_that_was_not_asked_for_is_refused() -> None:
    several = msgspec.structs.replace(TEXT, prompt=None, prompts=("a", (1, 2)), n=2)
    for job, choices in ((TEXT, 1), (several, 4)):
        taken = check(job)
        for choice in range(choices):
            taken.take(protocol.TextDelta(id="j", text="x", index=0, choice=choice))
        with pytest.raises(BadFrame, match="choice"):
            taken.take(protocol.TextDelta(id="j", text="x", index=0, choice=choices))
        one = protocol.TextChoice(text="", finish_reason="stop")
        for count in (1, choices, choices + 1):
            final = protocol.TextDone(
                id="j", choices=(one,) * count, prompt_tokens=1, completion_tokens=1
            )
            if count == choices:
                check(job).take(final)
            else:
                with pytest.raises(BadFrame, match="choices"):
                    check(job).take(final)


def test_events_of_reasoning_and_calls_count_as_text_does() -> None:
    call = protocol.ToolCallDelta(index=0, id="c", name="f", arguments="x" * (1 << 20))
    for delta in (
        protocol.TextDelta(id="j", text="", index=0, reasoning="x" * (1 << 20)),
        protocol.TextDelta(id="j", text="", index=0, tool_calls=(call,)),
    ):
        taken = check(TEXT)
        for _ in range(64):
            taken.take(delta)
        with pytest.raises(BadFrame, match="more events"):
            taken.take(delta)


def test_event_with_more_images_than_were_asked_for_is_refused() -> None:
    final = protocol.ImageDone(id="j", images=(PICTURE,) * 3, steps=2, scheduler="s")
    with pytest.raises(BadFrame, match="3 images"):
        check(IMAGE).take(final)


LOGPROB = protocol.TokenLogprob(token="t", id=1, logprob=-1.0, top=(("t", 1, -1.0),) * 20)


@pytest.mark.parametrize(
    ("job", "event"),
    [
        (TEXT, protocol.TextDelta(id="j", text="x" * 100_000, index=1)),
        (TEXT, protocol.TextDelta(id="j", text="x", index=1, logprobs=(LOGPROB,) * 100)),
        (SPEECH, protocol.AudioDelta(id="j", index=1, samples=b"x" * 100_000, sample_rate=24_000)),
        (IMAGE, protocol.Progress(id="j", step=1, steps=2, preview=b"x" * 100_000)),
    ],
    ids=["text", "logprobs", "sound", "preview"],
)
def test_events_of_one_job_come_to_an_end(job: protocol.Job, event: protocol.JobEvent) -> None:
    one = check(job)

    def tell_for_ever() -> None:
        for _ in range(100_000):
            one.take(event)

    with pytest.raises(BadFrame, match="more events for one job"):
        tell_for_ever()


def test_events_of_the_longest_answers_are_let_through() -> None:
    sampling = protocol.Sampling(max_tokens=1_000_000)
    long = check(protocol.TextJob(id="j", prompt="p", sampling=sampling))
    word = protocol.TextDelta(id="j", text="words", index=1)
    for _ in range(1_000_000):
        long.take(word)
    read = check(protocol.SpeechJob(id="j", text="x" * 100_000, seed=1, folder=""))
    second = protocol.AudioDelta(id="j", index=1, samples=b"x" * 96_000, sample_rate=48_000)
    for _ in range(100_000 // 8):  # read at half the usual speed
        read.take(second)
