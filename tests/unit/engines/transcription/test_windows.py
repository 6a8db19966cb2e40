"""Segments from a window's tokens, and the start of the next window."""

import pytest

from workers.engines.transcription.windows import Cut, Piece, cut, whole

MARK = 1000  #: the id of the timestamp of 0 s
WINDOW = 3000


def at(seconds: float) -> int:
    return MARK + round(seconds / 0.02)


@pytest.mark.parametrize(
    ("tokens", "pieces", "advance"),
    [
        # One timestamp at the end: no speech follows it.
        ([at(0), 1, 2, at(4)], [Piece(0, 4, 0, 200)], WINDOW),
        # A pair at the end: what follows is heard from there on.
        ([at(0), 1, at(4), at(4)], [Piece(0, 4, 0, 200)], 400),
        # Text after the last pair was cut by the window's end; it is heard again.
        ([at(0), 1, at(4), at(4), 2, 3], [Piece(0, 4, 0, 200)], 400),
        ([at(1), 1, at(4), at(5), 2, at(9)], [Piece(0, 3, 50, 200), Piece(3, 6, 250, 450)], WINDOW),
        (
            [at(1), 1, at(4), at(5), 2, at(9), at(9), 3],
            [Piece(0, 3, 50, 200), Piece(3, 7, 250, 450)],
            900,
        ),
        # No pair at all: the last timestamp that says something is the end, or the window's.
        ([at(0), 1, 2, 3], [Piece(0, 4, 0, 1500)], WINDOW),
        ([at(2), 1, 2, 3], [Piece(0, 4, 0, 100)], WINDOW),
        ([1, 2], [Piece(0, 2, 0, 1500)], WINDOW),
        ([], [Piece(0, 0, 0, 1500)], WINDOW),
    ],
)
def test_window_is_cut_into_segments(tokens: list[int], pieces: list[Piece], advance: int) -> None:
    assert cut(tokens, MARK, WINDOW, 2) == Cut(pieces, advance)


def test_window_at_the_end_has_fewer_frames() -> None:
    assert cut([at(0), 1], MARK, 700, 2) == Cut([Piece(0, 2, 0, 350)], 700)


def test_window_always_advances() -> None:
    assert cut([at(0), 1, at(0), at(0)], MARK, WINDOW, 2).advance == WINDOW


def test_window_without_timestamps_is_one_segment() -> None:
    assert whole([1, at(3), at(3), 2], WINDOW, 2) == Cut([Piece(0, 4, 0, 1500)], WINDOW)
