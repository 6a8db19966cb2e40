"""Segments as SubRip and WebVTT."""

import re

from hypothesis import given
from hypothesis import strategies as st

from bitinglip.wire.transcription.subtitles import srt, vtt
from workers.protocol import Segment


def segment(start: float, end: float, text: str) -> Segment:
    return Segment(
        start=start,
        end=end,
        text=text,
        tokens=(),
        avg_logprob=0.0,
        no_speech_prob=0.0,
        temperature=0.0,
        compression_ratio=1.0,
    )


def test_subtitles_are_written_as_srt_and_vtt() -> None:
    segments = [segment(0.0, 2.5, " Hello there."), segment(3661.0405, 3662.9996, " And bye.")]
    assert srt(segments) == (
        "1\n00:00:00,000 --> 00:00:02,500\nHello there.\n\n"
        "2\n01:01:01,040 --> 01:01:03,000\nAnd bye.\n\n"
    )
    assert vtt(segments) == (
        "WEBVTT\n\n"
        "00:00:00.000 --> 00:00:02.500\nHello there.\n\n"
        "01:01:01.040 --> 01:01:03.000\nAnd bye.\n\n"
    )


def test_subtitles_of_silence_are_an_empty_file_of_their_kind() -> None:
    assert srt([]) == ""
    assert vtt([segment(0, 1, "  ")]) == "WEBVTT\n\n"


def test_subtitle_times_are_rounded_and_carried() -> None:
    assert "00:00:59,999 --> 00:01:00,000" in srt([segment(59.9994, 59.9996, "x")])
    assert "100:00:00,000 --> 100:00:01,000" in srt([segment(360_000, 360_001, "x")])


def test_subtitle_cue_ends_where_the_next_begins() -> None:
    lines = srt([segment(0, 9, "a"), segment(4, 6, "b"), segment(6, 6, "c")]).splitlines()
    assert [line for line in lines if "-->" in line] == [
        "00:00:00,000 --> 00:00:04,000",
        "00:00:04,000 --> 00:00:06,000",
        "00:00:06,000 --> 00:00:06,001",
    ]


def test_subtitle_text_cannot_end_its_cue_or_be_markup() -> None:
    said = segment(0, 1, " a\n\nb --> c <i>&amp;")
    assert srt([said]).splitlines()[2:] == ["a b -> c <i>&amp;", ""]
    assert vtt([said]).splitlines()[3:] == ["a b --&gt; c &lt;i&gt;&amp;amp;", ""]


_times = st.floats(0, 20_000)
_segments = st.lists(st.builds(segment, _times, _times, st.text()))


@given(_segments)
def test_subtitle_cues_are_in_order_and_do_not_overlap(segments: list[Segment]) -> None:
    written = srt(segments)
    found = re.findall(r"^(\S+) --> (\S+)$", written, re.MULTILINE)
    times = [_milliseconds(each) for pair in found for each in pair]
    assert times == sorted(times)
    assert all(start < end for start, end in zip(times[::2], times[1::2], strict=True))
    assert len(found) == sum(bool(each.text.split()) for each in segments)
    assert written.count("\n\n") == len(found)
    assert vtt(segments).count(" --> ") == len(found)


def _milliseconds(time: str) -> int:
    hours, minutes, seconds = time.replace(",", "").split(":")
    return (int(hours) * 60 + int(minutes)) * 60_000 + int(seconds)
