"""Tells whether a window's sound rises and falls as voices do, by its features. Pure.

Silence, hum, tones and steady noise do not, and a Whisper writes words for some of them. Speech in
noise may seem steady as well, so this alone decides nothing: see ``Request.is_silent``.
"""

import math

import torch

_SPREAD_DB = 6.0  #: between quiet frames and loud ones; of white noise it is about 2
_LN10 = math.log(10)
_NOTHING_DB = -55.0  #: of the loud frames: the least that 16 bits hold
_QUIET, _LOUD = 0.1, 0.95  #: quantiles of the frames


def is_steady(features: torch.Tensor) -> bool:
    """Tell it of frames as ``Recording`` holds them: log10 of mel powers, (bins, frames)."""
    if features.shape[1] < 2:
        return True
    levels = 10 * torch.logsumexp(features * _LN10, dim=0) / _LN10
    quiet, loud = torch.quantile(levels, torch.tensor([_QUIET, _LOUD])).tolist()
    return bool(loud - quiet < _SPREAD_DB or loud < _NOTHING_DB)
