"""Rates of sound files: as asked for, as the format has them, and the sound unharmed by it."""

from typing import Any

import numpy as np
import pytest

from workers.engines.base import Refused
from workers.engines.speech.encoding import Resampler, choose_rate
from workers.protocol import SpeechJob


def job(**fields: Any) -> SpeechJob:
    return SpeechJob(id="j", text="hello", seed=1, folder="/nowhere", **fields)


@pytest.mark.parametrize(
    ("fields", "own", "rate"),
    [
        ({}, 22_050, 22_050),
        ({"format": "flac"}, 22_050, 22_050),
        ({"format": "ogg"}, 22_050, 24_000),
        ({"format": "ogg"}, 96_000, 48_000),
        ({"format": "mp3"}, 22_050, 22_050),
        ({"sample_rate": 8000}, 24_000, 8000),
        ({"format": "mp3", "sample_rate": 44_100}, 24_000, 44_100),
    ],
)
def test_sample_rate_is_the_model_s_own_where_the_format_has_it(
    fields: dict[str, Any], own: int, rate: int
) -> None:
    assert choose_rate(job(**fields), own) == rate


def test_sample_rate_that_a_format_lacks_is_refused_with_those_that_it_has() -> None:
    with pytest.raises(Refused, match="8000, 12000, 16000, 24000, 48000") as refused:
        choose_rate(job(format="ogg", sample_rate=44_100), 24_000)
    assert refused.value.param == "sample_rate"


@pytest.mark.parametrize("target", [8000, 22_050, 24_000, 48_000])
def test_resampler_keeps_a_tone_piece_by_piece(target: int) -> None:
    source = 16_000
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * source) / source).astype(np.float32)
    resampler = Resampler(source, target)
    first, second, third = tone[:5000], tone[5000:5000], tone[5000:]
    pieces = [resampler.push(first), resampler.push(second), resampler.finish(third)]
    found = np.concatenate(pieces)
    assert len(found) == pytest.approx(2 * target, abs=2)
    assert len(pieces[0])
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(found)) / target)
    inner = slice(target // 20, -target // 20)
    assert np.abs(found - expected)[inner].max() < 0.01


def test_resampler_of_the_same_rate_changes_nothing() -> None:
    samples = np.linspace(-1, 1, 100, dtype=np.float32)
    resampler = Resampler(24_000, 24_000)
    assert resampler.push(samples) is samples
    assert resampler.finish(samples) is samples
