"""Samples to sound files."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from workers.protocol import SpeechJob, sound_name

_LABEL = "Made by a machine (text to speech)"
_SOFTWARE = "BitingLip"
#: format -> libsndfile's container and coding
_KINDS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)


class SoundFile:
    """A job's file, written as its sound comes; it appears when it is whole."""

    def __init__(self, job: SpeechJob, sample_rate: int) -> None:
        """Raises OSError if the disk does not take it."""
        self._path = Path(job.folder) / sound_name(job.id, job.format)
        self._draft = self._path.with_name(f"{self._path.name}.part")
        container, coding = _KINDS[job.format]
        try:
            self._file: Any = soundfile.SoundFile(
                self._draft, "w", sample_rate, 1, subtype=coding, format=container
            )
        except soundfile.LibsndfileError as error:
            raise OSError(str(error)) from error
        if job.metadata:
            self._file.comment = _LABEL
            self._file.software = _SOFTWARE

    def write(self, samples: NDArray[np.float32]) -> None:
        self._file.write(np.clip(samples, -1, 1))

    def finish(self) -> int:
        """Its size in bytes."""
        self._file.close()
        size = self._draft.stat().st_size
        os.replace(self._draft, self._path)
        return size

    def drop(self) -> None:
        self._file.close()
        self._draft.unlink(missing_ok=True)


def can_write(audio_format: str, sample_rate: int) -> bool:
    """Whether the format has that rate."""
    rates = {"ogg": _OPUS_RATES, "mp3": _MP3_RATES}.get(audio_format)
    return rates is None or sample_rate in rates
