"""Joins sentences without clicks, and shortens the silence at their edges. Pure."""

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]

_SILENT = 0.004  #: of full scale
_KEPT_SECONDS = 0.12  #: of the silence at an edge
_FADE_SECONDS = 0.02
_PIECE_BYTES = 1 << 19  #: of a piece of sound: 5 to 11 s


class Joiner:
    """Takes sentences one by one; returns all samples but the end that fades into the next one."""

    def __init__(self, sample_rate: int) -> None:
        self._kept = int(_KEPT_SECONDS * sample_rate)
        self._fade = int(_FADE_SECONDS * sample_rate)
        self._tail = np.zeros(0, np.float32)

    def push(self, sentence: Samples) -> Samples:
        """Return the samples that can be played now that this sentence has come."""
        joined = _crossfade(self._tail, self._trim(sentence))
        ready = max(0, len(joined) - self._fade)
        self._tail = joined[ready:]
        return joined[:ready]

    def finish(self) -> Samples:
        """Return the remaining samples."""
        rest, self._tail = self._tail, np.zeros(0, np.float32)
        return rest

    def _trim(self, samples: Samples) -> Samples:
        loud = np.flatnonzero(np.abs(samples) > _SILENT)
        if not len(loud):
            return samples[: self._kept]
        begin, end = max(0, loud[0] - self._kept), loud[-1] + 1 + self._kept
        return samples[begin:end]


def _crossfade(before: Samples, after: Samples) -> Samples:
    """Fade from one piece to the other, over as much as both have."""
    length = min(len(before), len(after))
    if not length:
        return np.concatenate([before, after])
    rise = np.linspace(0, 1, length, dtype=np.float32)
    middle = before[len(before) - length :] * (1 - rise) + after[:length] * rise
    return np.concatenate([before[: len(before) - length], middle, after[length:]])


def pcm16(samples: Samples) -> bytes:
    """Return samples as 16-bit little-endian integers, clipped to full scale."""
    return (np.clip(samples, -1, 1) * 32767).round().astype("<i2").tobytes()


def pieces(sound: bytes) -> list[bytes]:
    """Cut sound into as much as one event holds."""
    return [sound[begin : begin + _PIECE_BYTES] for begin in range(0, len(sound), _PIECE_BYTES)]
