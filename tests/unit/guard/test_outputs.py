"""The guard of a job's events: transcripts by segment, and jobs that run again."""

from collections.abc import Sequence
from typing import Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from bitinglip.errors import ContentFiltered, PersonalDataDetected
from bitinglip.guard.checked import TextCheck
from bitinglip.guard.modes import Modes
from bitinglip.guard.outputs import OutputGuard, output_of
from bitinglip.guard.scanner import redact
from bitinglip.guard.watch import Watch
from bitinglip.guard.words import WordList
from bitinglip.scheduling.event_log import EventLog
from bitinglip.scheduling.job import Job
from bitinglip.settings.guard import Guard, Mode, PersonalData
from bitinglip.telemetry.health import Health
from workers import protocol

SAMPLING = protocol.Sampling(max_tokens=9)
#: the card is said in two segments
SAID = [" My card is 4111 1111", " 1111 1111, and", " my address john@example.com", " Bye."]
SHOWN = [" My card is [CARD]", ", and", " my address [EMAIL]", " Bye."]


def _guard(
    work: protocol.Job, mode: Mode = "redact", *, on_error: Literal["close", "open"] = "close"
) -> OutputGuard:
    watch = Watch(CollectorRegistry(), Health(), Guard(on_error=on_error))
    modes, kinds = Modes(output=mode), frozenset[PersonalData]({"card", "email"})
    guard = output_of(work, modes, lambda: TextCheck(kinds, modes, WordList(()), watch), watch)
    assert guard is not None
    return guard


def _transcription(*, stream: bool) -> protocol.TranscriptionJob:
    return protocol.TranscriptionJob(id="t", path="/nowhere", max_seconds=1, stream=stream)


def _segments() -> list[protocol.Segment]:
    return [
        protocol.Segment(
            start=number,
            end=number + 1,
            text=text,
            tokens=(number,),
            words=(protocol.Word(number, number + 1, text),),
            avg_logprob=0,
            no_speech_prob=0,
            temperature=0,
            compression_ratio=1,
        )
        for number, text in enumerate(SAID)
    ]


def _done(segments: Sequence[protocol.Segment]) -> protocol.TranscriptionDone:
    text = "".join(each.text for each in segments).strip()
    return protocol.TranscriptionDone(
        id="t", text=text, language="en", duration=4, segments=tuple(segments)
    )


def _deltas(segments: Sequence[protocol.Segment]) -> list[protocol.JobEvent]:
    return [
        protocol.SegmentDelta(id="t", segment=each, index=number)
        for number, each in enumerate(segments)
    ]


@pytest.mark.parametrize("streamed", [True, False], ids=["deltas", "final event alone"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
def test_transcript_is_redacted_across_segments(stream: bool, streamed: bool) -> None:
    guard, segments = _guard(_transcription(stream=stream)), _segments()
    assert isinstance(guard.work, protocol.TranscriptionJob)
    assert guard.work.stream
    events = [*(_deltas(segments) if streamed else []), _done(segments)]
    shown = [each for event in events for each in guard.take(event)]
    final = shown.pop()
    assert isinstance(final, protocol.TranscriptionDone)
    assert final.text == "".join(SHOWN).strip()
    assert [each.text for each in final.segments] == SHOWN
    assert [len(each.words) for each in final.segments] == [0, 0, 0, 1]
    assert [each.tokens for each in final.segments] == [(), (), (), (3,)]
    assert [each.start for each in final.segments] == [0, 1, 2, 3]
    if stream and streamed:
        texts = [each.segment.text for each in shown if isinstance(each, protocol.SegmentDelta)]
        assert texts == SHOWN
    else:
        assert shown == []


def test_transcript_with_nothing_in_it_stays_as_it_is() -> None:
    guard, segments = _guard(_transcription(stream=True)), _segments()[3:]
    events = [*_deltas(segments), _done(segments)]
    assert [each for event in events for each in guard.take(event)] == events


def test_report_changes_no_transcript() -> None:
    guard, segments = _guard(_transcription(stream=True), "report"), _segments()
    events = [*_deltas(segments), _done(segments)]
    assert [each for event in events for each in guard.take(event)] == events


def test_blocked_transcript_ends_before_its_match_is_shown() -> None:
    guard, segments = _guard(_transcription(stream=True), "block"), _segments()
    assert not guard.take(_deltas(segments)[0])
    with pytest.raises(PersonalDataDetected):
        guard.take(_deltas(segments)[1])


def test_listed_words_are_held_back_beside_a_report() -> None:
    watch = Watch(CollectorRegistry(), Health(), Guard())
    modes, listed = Modes(output="report", words_output="block"), WordList(["a bad thing"])
    checked = TextCheck(frozenset({"email"}), modes, listed, watch)
    shown = [piece.text for piece in checked.feed("to john@example.com, a b")]
    shown += [piece.text for piece in checked.feed("ad th")]
    assert "".join(shown) == "to john@example.com, "
    with pytest.raises(ContentFiltered):
        checked.feed("ing", last=True)


_PARTS = ["mail ", "john@exam", "ple.com", " 4111 1111", " 1111 1111", "ü", "x", " ", "\u200b", ""]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(_PARTS), max_size=12), st.booleans())
def test_text_and_tokens_of_a_stream_tell_the_same(parts: list[str], stream: bool) -> None:
    text = "".join(parts)
    work = protocol.TextJob(id="t", prompt="p", sampling=SAMPLING, stream=stream)
    guard, shown, tokens, indexes = _guard(work), "", [], [0]
    tops = [
        protocol.TokenLogprob(token=part, id=number, logprob=-1)
        for number, part in enumerate(parts)
    ]
    events: list[protocol.JobEvent] = [
        protocol.TextDelta(id="t", text=part, index=number, logprobs=(tops[number],))
        for number, part in enumerate(parts)
    ]
    done = _text_done(text)
    choice = msgspec.structs.replace(done.choices[0], logprobs=tuple(tops))
    done = msgspec.structs.replace(done, choices=(choice,))
    for event in (each for sent in [*events, done] for each in guard.take(sent)):
        if isinstance(event, protocol.TextDelta):
            assert stream
            shown += event.text
            tokens += [each.token for each in event.logprobs]
            indexes.append(event.index)
        else:
            assert isinstance(event, protocol.TextDone)
            assert event.text == redact(text, frozenset({"card", "email"}))
            final = event.choices[0].logprobs
    assert indexes == sorted(indexes)
    if stream:
        assert shown == redact(text, frozenset({"card", "email"}))
        assert tokens == [each.token for each in final]
    assert guard.altered == (redact(text, frozenset({"card", "email"})) != text)
    numbers = {each.id for each in final}
    told = "".join(part if number in numbers else "\n" for number, part in enumerate(parts))
    assert "john@example.com" not in told


def test_job_that_runs_again_is_guarded_from_its_start() -> None:
    work = protocol.TextJob(id="t", prompt="p", sampling=protocol.Sampling(max_tokens=9))
    guard = _guard(work)
    event_log = EventLog(Job(work=work, model="m", key_id="k"), guard=guard)
    event_log.dispatch("m/0")
    assert guard.take(protocol.TextDelta(id="t", text="mail john@exam", index=0)) != ()
    event_log.dispatch("m/1")
    shown = [
        *guard.take(protocol.TextDelta(id="t", text="mail john@example.com", index=0)),
        *guard.take(_text_done("mail john@example.com")),
    ]
    assert [getattr(each, "text", "") for each in shown] == ["mail ", "[EMAIL]", "mail [EMAIL]"]


def test_engine_that_streams_nothing_has_its_final_text_redacted() -> None:
    work = protocol.TextJob(id="t", prompt="p", sampling=protocol.Sampling(max_tokens=9))
    (done,) = _guard(_body(work)).take(_text_done("card 4111 1111 1111 1111"))
    assert isinstance(done, protocol.TextDone)
    assert done.text == "card [CARD]"
    assert done.completion_tokens == 3


def _body(work: protocol.TextJob) -> protocol.TextJob:
    """Return the job of a client that wants one body."""
    return protocol.TextJob(id=work.id, prompt="p", sampling=work.sampling, stream=False)


def _text_done(text: str) -> protocol.TextDone:
    return protocol.TextDone(
        id="t",
        choices=(protocol.TextChoice(text=text, finish_reason="stop"),),
        prompt_tokens=1,
        completion_tokens=3,
    )


@pytest.mark.parametrize("kind", ["text", "transcript"])
def test_guard_failure_marks_what_passed_unchecked_as_altered(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check the mark: a cache that had kept the text would serve it once the guard works again."""

    def failing(_text: str) -> tuple[str, None]:
        raise RuntimeError("a fault of the guard")

    monkeypatch.setattr("bitinglip.guard.scanner.fold", failing)
    said = "mail john@example.com"
    if kind == "text":
        guard = _guard(protocol.TextJob(id="t", prompt="p", sampling=SAMPLING), on_error="open")
        (done,) = guard.take(_text_done(said))
    else:
        guard = _guard(_transcription(stream=False), on_error="open")
        (done,) = guard.take(_done(_segments()[2:]))
    assert "john@example.com" in getattr(done, "text", "")
    assert guard.altered
