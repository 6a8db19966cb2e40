"""Sentences joined: no clicks, no long silence, nothing lost, the same however it is played."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from workers.engines.speech.joining import Joiner, pcm16, pieces
from workers.framing import FrameReader, encode_frame
from workers.protocol import AudioDelta

RATE = 24_000
FADE, KEPT = 480, 2880


def tone(seconds: float, *, before: float = 0.0, after: float = 0.0) -> np.ndarray:
    wave = 0.5 * np.sin(np.arange(int(seconds * RATE)) * 0.05)
    edges = [np.zeros(int(length * RATE)) for length in (before, after)]
    return np.concatenate([edges[0], wave, edges[1]]).astype(np.float32)


def joined(*parts: np.ndarray) -> np.ndarray:
    joiner = Joiner(RATE)
    return np.concatenate([*(joiner.push(part) for part in parts), joiner.finish()])


def test_joiner_leaves_one_sentence_as_it_is() -> None:
    assert np.array_equal(joined(tone(1)), tone(1))


def test_joiner_shortens_silence_at_the_edges() -> None:
    whole = joined(tone(1, before=2, after=2))
    assert abs(len(whole) - (RATE + 2 * KEPT)) < 100


def test_joiner_gives_the_length_of_the_parts_less_the_cross_fades() -> None:
    parts = [tone(0.5), tone(0.7), tone(0.3)]
    assert abs(len(joined(*parts)) - (sum(map(len, parts)) - 2 * FADE)) < 10


def test_joiner_makes_no_click() -> None:
    steps = np.abs(np.diff(joined(tone(0.5), -tone(0.5))))
    assert steps.max() < 1.5 * np.abs(np.diff(tone(0.5))).max() + 1 / FADE


@given(st.lists(st.integers(0, 2000), max_size=6))
def test_joiner_takes_any_lengths(lengths: list[int]) -> None:
    parts = [np.ones(length, np.float32) for length in lengths]
    whole = joined(*parts)
    assert len(whole) <= sum(lengths)
    assert np.isfinite(whole).all()


def test_pcm_clips_samples_beyond_full_scale() -> None:
    assert pcm16(np.array([0, 1, -1, 2], np.float32)) == b"\x00\x00\xff\x7f\x01\x80\xff\x7f"


def test_pcm_events_hold_whole_samples() -> None:
    """One sentence of a minute, as high as a model samples: more than an event may hold."""
    sound = pcm16(np.zeros(60 * 48_000, np.float32)) + pcm16(np.ones(1, np.float32))
    cut = pieces(sound)
    assert b"".join(cut) == sound
    assert all(len(piece) % 2 == 0 for piece in cut)
    events = [AudioDelta(id="j", index=0, samples=piece, sample_rate=48_000) for piece in cut]
    assert FrameReader().feed(b"".join(encode_frame([each]) for each in events)) == events
