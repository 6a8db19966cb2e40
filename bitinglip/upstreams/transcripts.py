"""Converts transcription jobs into forms of OpenAI's API, and its answers back. Pure."""

from bisect import bisect_left
from operator import attrgetter
from typing import Annotated

import msgspec

from bitinglip.upstreams.answer import BadAnswer
from workers.engines.base import Refused
from workers.protocol import Segment, TranscriptionDone, TranscriptionJob, Word

_FORM = "The upstream's answer has another form."
MOST_TRANSCRIPT = 32 << 20  #: bytes of an answer: less than half of it fits into a frame
_MOST_PARTS = 1 << 17  #: segments, and as many words: those of a day and more
_CODE = 3  #: letters of a language's code, at most; longer ones are English names
_start = attrgetter("start")
_Time = Annotated[float, msgspec.Meta(ge=0, le=1e7)]
_Number = Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)]


class _Word(msgspec.Struct):
    word: str
    start: _Time
    end: _Time


class _Segment(msgspec.Struct):
    start: _Time
    end: _Time
    text: str
    tokens: list[Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]] = []
    avg_logprob: _Number = 0.0
    no_speech_prob: _Number = 0.0
    temperature: _Number = 0.0
    compression_ratio: _Number = 1.0


class _Answer(msgspec.Struct):
    text: str
    duration: Annotated[float, msgspec.Meta(ge=0, le=1e7)]
    language: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    segments: Annotated[list[_Segment], msgspec.Meta(max_length=_MOST_PARTS)] | None = None
    words: Annotated[list[_Word], msgspec.Meta(max_length=_MOST_PARTS)] | None = None


def transcript_path(job: TranscriptionJob) -> str:
    """Return the path of the request. Raises Refused for what the API has no field for."""
    if job.logprobs:
        text = "'include' cannot be passed on to the server that this model stands for."
        raise Refused("UNSUPPORTED_PARAMETER", text, param="include")
    return "audio/translations" if job.task == "translate" else "audio/transcriptions"


def transcript_fields(job: TranscriptionJob, model: str) -> list[tuple[str, str]]:
    """Return the fields of the form beside the file. The answer has to tell the duration."""
    fields = [("model", model), ("response_format", "verbose_json")]
    if job.language is not None and job.task != "translate":
        fields.append(("language", job.language))
    if job.prompt is not None:
        fields.append(("prompt", job.prompt))
    if job.temperature:
        fields.append(("temperature", str(job.temperature)))
    if job.timestamps != "none" and job.task != "translate":
        fields.append(("timestamp_granularities[]", "segment"))
    if job.timestamps == "word":
        fields.append(("timestamp_granularities[]", "word"))
    return fields


def transcript_done(job: TranscriptionJob, data: bytes | bytearray) -> TranscriptionDone:
    """Return the final event of an answer. Raises BadAnswer."""
    try:
        answer = msgspec.json.decode(data, type=_Answer, strict=False)
    except (ValueError, msgspec.DecodeError) as error:
        raise BadAnswer(_FORM) from error
    words = [Word(start=each.start, end=each.end, text=each.word) for each in answer.words or ()]
    language = (answer.language or "").strip().lower() or None
    is_code = language is not None and len(language.partition("-")[0]) <= _CODE
    return TranscriptionDone(
        id=job.id,
        text=answer.text,
        language=language if is_code else None,
        language_name=None if is_code else language,
        duration=answer.duration,
        segments=_segments(answer, words),
    )


def _segments(answer: _Answer, words: list[Word]) -> tuple[Segment, ...]:
    """Return the segments, each with its words; one for all where the server tells none.

    A text without a word has none.
    """
    found = answer.segments or [_Segment(start=0.0, end=answer.duration, text=answer.text)]
    if not (answer.segments or answer.text.strip()):
        return ()
    words = sorted(words, key=_start)
    made, last, begin = [], len(found) - 1, 0
    for number, each in enumerate(found):
        end = found[number + 1].start if number < last else float("inf")
        # Words of hours of speech are many: each is looked at for one segment only.
        first, begin = begin, bisect_left(words, end, lo=begin, key=_start)
        own = tuple(words[first:begin])
        made.append(
            Segment(
                start=each.start,
                end=each.end,
                text=each.text,
                tokens=tuple(each.tokens),
                words=own,
                avg_logprob=each.avg_logprob,
                no_speech_prob=each.no_speech_prob,
                temperature=each.temperature,
                compression_ratio=each.compression_ratio,
            )
        )
    return tuple(made)
