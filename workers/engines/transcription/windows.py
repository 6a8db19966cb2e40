"""Splits a window's tokens into segments, and finds where the next window begins. Pure.

Whisper marks the start and the end of speech by timestamps. Two in a row are a segment's end and
the next one's start; speech after the last pair was cut by the window's end, and belongs to the
next window.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class Piece:
    """Names a segment: ``tokens[first:last]`` of its window. Times are in timestamps."""

    first: int
    last: int
    start: int
    end: int


@dataclass(slots=True, frozen=True)
class Cut:
    """Holds the segments of a window, and how far to advance."""

    pieces: list[Piece]
    advance: int  #: frames to the next window


def cut(tokens: Sequence[int], first_timestamp: int, frames: int, stride: int) -> Cut:
    """Split ``tokens``, which have no end token; ``frames`` is how many the file has there."""
    marks = [token >= first_timestamp for token in tokens]
    pairs = [i + 1 for i in range(len(marks) - 1) if marks[i] and marks[i + 1]]
    if not pairs:
        end = _last_mark(tokens, first_timestamp) or frames // stride
        return Cut([Piece(0, len(tokens), 0, end)], frames)
    ends_with_one = marks[-2:] == [False, True]
    # The last pair's second half belongs to the last segment, which shows that it was a pair.
    borders = [*pairs, len(tokens)] if ends_with_one else [*pairs[:-1], pairs[-1] + 1]
    pieces = []
    first = 0
    for number, last in enumerate(borders):
        half = number == len(borders) - 1 and not ends_with_one
        start, end = tokens[first], tokens[last - 2 if half else last - 1]
        pieces.append(Piece(first, last, start - first_timestamp, end - first_timestamp))
        first = last
    if ends_with_one:
        return Cut(pieces, frames)  # no one speaks after the last timestamp
    advance = (tokens[first - 2] - first_timestamp) * stride
    return Cut(pieces, advance if advance > 0 else frames)


def whole(tokens: Sequence[int], frames: int, stride: int) -> Cut:
    """Make one piece of a window that was to have no timestamps, even if it has some."""
    return Cut([Piece(0, len(tokens), 0, frames // stride)], frames)


def _last_mark(tokens: Sequence[int], first_timestamp: int) -> int:
    """Return the last timestamp; 0 if there is none, or it is the window's own start."""
    return next((t - first_timestamp for t in reversed(tokens) if t >= first_timestamp), 0)
