"""Subtitles show the segments of a transcription as SubRip or WebVTT.

Players show what overlaps at the same time, and drop cues that end before they begin; so times
are rounded once, to milliseconds, and put in order after that.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from workers.protocol import Segment

_SHORTEST = 1  #: millisecond, of a cue; players never show one without any


@dataclass(frozen=True, slots=True)
class _Cue:
    """Holds a cue of subtitles; ``start`` and ``end`` are in milliseconds."""

    start: int
    end: int
    text: str


def srt(segments: Iterable[Segment]) -> str:
    return "".join(
        f"{number}\n{_time(cue.start, ',')} --> {_time(cue.end, ',')}\n{_plain(cue.text)}\n\n"
        for number, cue in enumerate(_cues(segments), start=1)
    )


def vtt(segments: Iterable[Segment]) -> str:
    cues = (
        f"{_time(cue.start, '.')} --> {_time(cue.end, '.')}\n{_escaped(cue.text)}\n\n"
        for cue in _cues(segments)
    )
    return "WEBVTT\n\n" + "".join(cues)


def _cues(segments: Iterable[Segment]) -> list[_Cue]:
    """Make a cue of each segment with text; none overlaps the next."""
    cues: list[_Cue] = []
    for segment in segments:
        text = " ".join(segment.text.split())  # a blank line would end the cue
        if not text:
            continue
        start, end = _milliseconds(segment.start), _milliseconds(segment.end)
        if cues:
            last = cues[-1]
            start = max(start, last.start + _SHORTEST)
            cues[-1] = replace(last, end=min(last.end, start))
        cues.append(_Cue(start, max(end, start + _SHORTEST), text))
    return cues


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _time(milliseconds: int, point: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{rest:03}"


def _plain(text: str) -> str:
    """Replace arrows, which would end a cue: SubRip has no escapes."""
    return text.replace("-->", "->")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
