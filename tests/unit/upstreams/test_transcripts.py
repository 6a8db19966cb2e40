"""Transcripts from other servers: what they are asked for, and what is taken for an answer."""

import json
import time

import pytest

from bitinglip.upstreams.answer import BadAnswer
from bitinglip.upstreams.transcripts import transcript_done, transcript_fields, transcript_path
from workers.engines.base import Refused
from workers.protocol import TranscriptionJob


def job(**more: object) -> TranscriptionJob:
    return TranscriptionJob(id="t", path="nowhere", max_seconds=60, **more)  # type: ignore[arg-type]


def test_transcription_fields_are_what_the_job_wants() -> None:
    assert transcript_fields(job(), "m") == [("model", "m"), ("response_format", "verbose_json")]
    timed = job(language="de", prompt="p", temperature=0.5, timestamps="word")
    assert transcript_fields(timed, "m")[2:] == [
        ("language", "de"),
        ("prompt", "p"),
        ("temperature", "0.5"),
        ("timestamp_granularities[]", "segment"),
        ("timestamp_granularities[]", "word"),
    ]
    assert transcript_path(timed) == "audio/transcriptions"
    assert transcript_path(job(task="translate")) == "audio/translations"
    with pytest.raises(Refused, match="include"):
        transcript_path(job(logprobs=True))


def test_transcription_answer_has_its_words_in_their_segments() -> None:
    pieces = [{"id": n, "start": n, "end": n + 1, "text": f" s{n}", "tokens": [n]} for n in (0, 1)]
    words = [
        {"word": w, "start": at, "end": at + 0.2} for w, at in (("a", 0), ("b", 0.9), ("c", 1))
    ]
    told = {"text": "a b c", "duration": "2.0", "language": "german", "segments": pieces}
    done = transcript_done(job(), json.dumps({**told, "words": words}).encode())
    assert (done.text, done.duration, done.language, done.language_name) == (
        "a b c", 2.0, None, "german",
    )  # fmt: skip
    assert [[word.text for word in each.words] for each in done.segments] == [["a", "b"], ["c"]]
    plain = transcript_done(job(), b'{"text": "x", "duration": 3, "language": "de"}')
    assert (plain.language, plain.segments[0].end) == ("de", 3.0)


def test_transcription_words_are_those_of_their_segments_in_any_order() -> None:
    pieces = [{"start": n, "end": n + 1, "text": "s"} for n in range(3)]
    words = [{"word": str(at), "start": at, "end": at} for at in (2, 0, 1.5, 1)]
    told = {"text": "s", "duration": 3, "segments": pieces, "words": words}
    done = transcript_done(job(), json.dumps(told).encode())
    texts = [[word.text for word in each.words] for each in done.segments]
    assert texts == [["0"], ["1", "1.5"], ["2"]]


def test_transcription_of_hours_is_read_in_a_moment() -> None:
    pieces = [{"start": n, "end": n + 1, "text": "s"} for n in range(20_000)]
    words = [{"word": "w", "start": n / 2, "end": n / 2} for n in range(40_000)]
    told = {"text": "s", "duration": 20_000, "segments": pieces, "words": words}
    began = time.process_time()
    done = transcript_done(job(), json.dumps(told).encode())
    assert time.process_time() - began < 4  # to look at all words for each took eight
    assert {len(each.words) for each in done.segments} == {2}


def test_transcription_of_more_parts_than_speech_has_is_refused() -> None:
    """Two million of them, of 30 bytes each, would take a gigabyte, and hold up others."""
    pieces = b",".join([b'{"start": 0, "end": 0, "text": ""}'] * 140_000)
    with pytest.raises(BadAnswer):
        transcript_done(job(), b'{"text": "", "duration": 3, "segments": [%s]}' % pieces)


def test_transcription_of_silence_has_no_segment() -> None:
    told = b'{"text": "", "duration": 3, "segments": []}'
    assert transcript_done(job(), told).segments == ()


@pytest.mark.parametrize(
    "data", [b"", b"{}", b'{"text": "x"}', b'{"text": "x", "duration": -1}', b'{"text": 1}']
)
def test_transcription_answer_of_another_form_is_refused(data: bytes) -> None:
    with pytest.raises(BadAnswer):
        transcript_done(job(), data)
