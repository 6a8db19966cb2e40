"""Stretched sound has another length and the same pitch."""

import numpy as np
import pytest

from workers.engines.speech.stretching import Stretcher

RATE, PITCH = 24_000, 440.0


@pytest.mark.parametrize("speed", [0.25, 0.5, 0.9, 1.0, 1.5, 2.0, 4.0])
def test_stretching_keeps_the_pitch(speed: float) -> None:
    times = np.arange(2 * RATE) / RATE
    sound = (0.5 * np.sin(2 * np.pi * PITCH * times)).astype(np.float32)
    stretcher = Stretcher(RATE, speed)
    pieces = [stretcher.push(piece) for piece in np.array_split(sound, 7)]
    made = np.concatenate([*pieces, stretcher.finish(np.zeros(0, np.float32))])
    assert len(made) == pytest.approx(len(sound) / speed, rel=0.03)
    middle = made[len(made) // 4 :][: RATE // 4]
    loudest = np.abs(np.fft.rfft(middle * np.hanning(len(middle)))).argmax() * RATE / len(middle)
    assert loudest == pytest.approx(PITCH, abs=8)
    assert np.abs(made).max() < 0.6


def test_stretching_of_nothing_is_nothing() -> None:
    assert not len(Stretcher(RATE, 2.0).finish(np.zeros(0, np.float32)))
