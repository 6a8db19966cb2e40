"""Computes the log-mel features that Whisper's encoder reads, block by block.

The library computes them of a whole file at once, which takes gigabytes for an hour. Only one
number needs the whole file: the loudest value; quieter ones are cut off at a fixed distance.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from workers.engines.transcription.activity import Activity, activity_of

_FLOOR = 1e-10
_RANGE = 8.0  #: powers of ten between the loudest value and the quietest that is kept

Samples = NDArray[np.float32]


@dataclass(slots=True, frozen=True)
class Recording:
    """Holds a file's features: log10 of the mel powers, in blocks of (bins, frames)."""

    blocks: list[torch.Tensor]
    peak: float
    frames: int  #: with the silence that a short file is filled up with
    file_frames: int  #: frames of the file itself
    seconds: float

    def window(self, start: int, length: int) -> torch.Tensor:
        """Return ``length`` frames from ``start`` on, zeros after the end, as (bins, length)."""
        found = (self._frames(start, length).clamp(min=self.peak - _RANGE) + 4.0) / 4.0
        return torch.nn.functional.pad(found, (0, length - found.shape[1]))

    def activity(self, start: int, length: int) -> Activity:
        """Tell how much these frames, as far as they are the file's, are like voices."""
        return activity_of(self._frames(start, min(length, self.file_frames - start)))

    def _frames(self, start: int, length: int) -> torch.Tensor:
        pieces = []
        begin = 0
        for block in self.blocks:
            end = begin + block.shape[1]
            if begin < start + length and end > start:
                pieces.append(block[:, max(0, start - begin) : start + length - begin])
            begin = end
        return torch.cat(pieces, dim=1)


class LogMel:
    """Computes features by the settings of a WhisperFeatureExtractor."""

    def __init__(self, extractor: Any) -> None:
        self.rate = int(extractor.sampling_rate)
        self.block = int(extractor.n_samples)  #: samples of the blocks that it is given
        self._size = int(extractor.n_fft)
        self._hop = int(extractor.hop_length)
        self._filters = torch.from_numpy(extractor.mel_filters).to(torch.float32).T.contiguous()
        self._window = torch.hann_window(self._size)

    def record(self, blocks: Iterable[Samples]) -> Recording:
        """Compute the features of a file that has a sample at least.

        All blocks but the last have ``block`` samples; a file that is shorter is filled up with
        silence, as the library does.
        """
        half = self._size // 2
        count = total = 0
        powers: list[torch.Tensor] = []
        rest = end = np.empty(0, np.float32)
        for block in blocks:
            count += len(block)
            whole = block
            if not total:
                whole = np.pad(block, (0, self.block - len(block)))
                rest = whole[half:0:-1]
            total += len(whole)
            end = np.concatenate((end, whole))[-half - 1 :]
            rest = self._transform(np.concatenate((rest, whole)), powers)
        # Mirrored at both ends, so that the first and the last frame have all their samples.
        self._transform(np.concatenate((rest, end[-2::-1])), powers)
        frames = total // self._hop
        powers = _cut(powers, frames)
        return Recording(
            blocks=powers,
            peak=max(float(each.max()) for each in powers),
            frames=frames,
            file_frames=max(1, count // self._hop),
            seconds=count / self.rate,
        )

    def _transform(self, samples: Samples, powers: list[torch.Tensor]) -> Samples:
        """Add the complete frames; returns the samples that the next one begins with."""
        count = max(0, 1 + (len(samples) - self._size) // self._hop)
        if count:
            used = torch.from_numpy(samples[: (count - 1) * self._hop + self._size].copy())
            spectrum = torch.stft(
                used,
                self._size,
                self._hop,
                window=self._window,
                center=False,
                return_complex=True,
            )
            powers.append((self._filters @ spectrum.abs() ** 2).clamp(min=_FLOOR).log10())
        return samples[count * self._hop :]


def _cut(powers: list[torch.Tensor], frames: int) -> list[torch.Tensor]:
    """Leave out the last frame, which stands for no time of its own, as the library does."""
    *first, last = powers
    surplus = sum(each.shape[1] for each in powers) - frames
    kept = last[:, : last.shape[1] - surplus]
    return [*first, kept] if kept.shape[1] else first
