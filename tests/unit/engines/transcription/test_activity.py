"""Voice activity, and which attempt at a window is taken."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import WhisperFeatureExtractor

from workers.engines.transcription.activity import Activity
from workers.engines.transcription.decoding import Attempt
from workers.engines.transcription.features import LogMel, Recording
from workers.engines.transcription.loading import DecodingConfig
from workers.engines.transcription.request import Request
from workers.protocol import TranscriptionJob

NOTHING, STEADY, LIVELY = Activity
RATE, SECONDS, END = 16_000, 3, 9
TIMES = np.arange(RATE * SECONDS) / RATE
NOISE = np.random.default_rng(0).normal(0, 1, len(TIMES))
JOB = TranscriptionJob(id="j", path="f", max_seconds=9)
DECODING = DecodingConfig(
    start=1, end=END, previous=None, no_timestamps=10, languages={}, tasks={}, suppressed=[],
    suppressed_first=[], alignment_heads=[], top_k=50, max_tokens=448, compression=1.35,
    logprob=-1.0, no_speech=0.6, window=3000, stride=2,
)  # fmt: skip


def record(samples: NDArray[np.float64]) -> Recording:
    return LogMel(WhisperFeatureExtractor()).record([samples.astype(np.float32)])


@pytest.mark.parametrize(
    ("samples", "activity"),
    [
        (0 * TIMES, NOTHING),
        (NOISE * 1e-5, NOTHING),  # below what 16 bits hold
        (NOISE * 0.2, STEADY),
        (0.3 * np.sin(2 * np.pi * 440 * TIMES), STEADY),
        (0.1 * np.sin(2 * np.pi * 50 * TIMES), STEADY),
        (NOISE * 0.1 * np.abs(np.sin(2 * np.pi * 3 * TIMES)) ** 2, LIVELY),  # syllables
        (NOISE * 0.001 + 0.1 * np.sin(2 * np.pi * 200 * TIMES) * (TIMES < 1), LIVELY),
    ],
    ids=["silence", "faint", "noise", "tone", "hum", "syllables", "one word"],
)
def test_activity_is_a_sound_that_rises_and_falls(
    samples: NDArray[np.float64], activity: Activity
) -> None:
    assert record(samples).activity(0, 3000) is activity


def test_activity_counts_the_file_only_not_the_silence_after_it() -> None:
    assert record(NOISE * 0.2).activity(0, 3000) is STEADY
    assert record(NOISE[:160] * 0.2).activity(0, 3000) is STEADY  # one frame


def attempt(logprob: float, no_speech: float = 0.1, tokens: list[int] | None = None) -> Attempt:
    tokens = tokens or [2, 3, 4, END]
    made = Attempt([1], False, 0.0, torch.Generator(), tokens, [logprob] * len(tokens))
    made.no_speech_prob = no_speech
    return made


def request(activity: Activity, bad: list[Attempt] | None = None) -> Request:
    return Request(JOB, record(NOISE), [], None, False, activity=activity, bad=bad or [])


@pytest.mark.parametrize(
    ("activity", "tried", "taken"),
    [
        (LIVELY, attempt(-0.4, 0.94), True),  # sure of the text, as the original decoder asks
        (STEADY, attempt(-0.4, 0.94), False),  # "you", of a hum
        (STEADY, attempt(-0.4, 0.3), True),  # speech in loud noise
        (STEADY, attempt(-1.5, 0.3), False),
        (LIVELY, attempt(-1.5, 0.94), False),
        (NOTHING, attempt(-0.1, 0.0), False),
    ],
    ids=["speech", "hum", "noisy speech", "unlikely in noise", "unlikely", "silence"],
)
def test_no_speech_is_believed_with_a_second_sign(
    activity: Activity, tried: Attempt, taken: bool
) -> None:
    assert (request(activity).choose(tried, DECODING, 300) is tried) is taken


def test_attempt_that_only_repeats_itself_is_better_than_one_drawn_freely() -> None:
    loop = [2, 3] * 40
    refrain, cut = attempt(-0.2, tokens=[*loop, END]), attempt(-0.1, tokens=loop)
    freely = attempt(-0.6, tokens=[*loop, END])
    asked = request(LIVELY, bad=[refrain, cut])
    assert asked.choose(freely, DECODING, 300) is refrain
    last = attempt(-2.0)
    assert request(LIVELY, bad=[attempt(-1.9)]).choose(last, DECODING, 300) is last
