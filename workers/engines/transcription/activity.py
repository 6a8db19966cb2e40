"""Tells whether a window's sound rises and falls as voices do, by its features. Pure.

Hum, tones and steady noise do not, and a Whisper writes words for some of them. Speech in noise may
seem steady as well, so that alone decides nothing: see ``Request.is_silent``.
"""

import math
from enum import IntEnum

import torch

_SPREAD_DB = 6.0  #: between quiet frames and loud ones; of white noise it is about 2
_LN10 = math.log(10)
_NOTHING_DB = -55.0  #: of the loud frames: the least that 16 bits hold
_QUIET, _LOUD = 0.1, 0.95  #: quantiles of the frames


class Activity(IntEnum):
    """Tells how much a sound is like voices: not at all, hardly, or as far as this can tell."""

    NOTHING = 0  #: no louder than what 16 bits hold
    STEADY = 1
    LIVELY = 2


def activity_of(features: torch.Tensor) -> Activity:
    """Tell it of frames as ``Recording`` holds them: log10 of mel powers, (bins, frames)."""
    levels = 10 * torch.logsumexp(features * _LN10, dim=0) / _LN10
    quiet, loud = torch.quantile(levels, torch.tensor([_QUIET, _LOUD])).tolist()
    if loud < _NOTHING_DB:
        return Activity.NOTHING
    return Activity.STEADY if loud - quiet < _SPREAD_DB else Activity.LIVELY
