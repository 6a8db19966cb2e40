"""Writes samples to audio files at the rate that a job wants."""

import os
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from av.error import FFmpegError
from numpy.typing import NDArray

from workers.engines.base import Refused
from workers.protocol import SOFTWARE, SOUND_LABEL, SpeechJob, audio_file_name

#: format -> libsndfile's container and coding
_KINDS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
#: formats that have only some sample rates
_RATES = {
    "ogg": (8000, 12_000, 16_000, 24_000, 48_000),
    "mp3": (8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000),
    "aac": (8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000),
}

Samples = NDArray[np.float32]


def choose_rate(job: SpeechJob, own: int) -> int:
    """Return the sample rate of a job's audio.

    A job that names none gets the model's ``own``, or the next higher one that the format has.
    Raises Refused for a rate that the format does not have.
    """
    rates = _RATES.get(job.format)
    if job.sample_rate is None:
        return own if rates is None else next((r for r in rates if r >= own), rates[-1])
    if rates is not None and job.sample_rate not in rates:
        known = ", ".join(map(str, rates))
        message = f"'sample_rate' must be one of {known} for the format {job.format}."
        raise Refused("INVALID_REQUEST", message, param="sample_rate")
    return job.sample_rate


class Resampler:
    """Converts samples from one rate to another, piece by piece."""

    def __init__(self, source: int, target: int) -> None:
        self._source = source
        self._inner: Any = None
        if source != target:
            self._inner = av.AudioResampler("flt", "mono", target)

    def push(self, samples: Samples) -> Samples:
        """Resample some samples; returns those that can be played by now."""
        if self._inner is None or not len(samples):
            return samples
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples)[None], "flt", "mono")
        frame.sample_rate = self._source
        return self._joined(self._inner.resample(frame))

    def finish(self, samples: Samples) -> Samples:
        """Resample the last samples; returns all that is left."""
        ready = self.push(samples)
        if self._inner is None:
            return ready
        return np.concatenate([ready, self._joined(self._inner.resample(None))])

    def _joined(self, frames: list[Any]) -> Samples:
        pieces = [frame.to_ndarray()[0] for frame in frames]
        return np.concatenate([np.zeros(0, np.float32), *pieces])


class AudioFile:
    """Writes a job's file while its audio is made; the file appears when it is complete."""

    def __init__(self, job: SpeechJob, sample_rate: int) -> None:
        """Open the file. Raises OSError if the disk does not take it."""
        self._path = Path(job.folder) / audio_file_name(job.id, job.format)
        self._draft = self._path.with_name(f"{self._path.name}.part")
        if job.format == "aac":
            self._file: Any = _AacFile(self._draft, sample_rate)
            return
        container, coding = _KINDS[job.format]
        try:
            self._file = soundfile.SoundFile(
                self._draft, "w", sample_rate, 1, subtype=coding, format=container
            )
        except soundfile.LibsndfileError as error:
            raise OSError(str(error)) from error
        if job.metadata:
            self._file.comment = SOUND_LABEL
            self._file.software = SOFTWARE

    def write(self, samples: NDArray[np.float32]) -> None:
        self._file.write(np.clip(samples, -1, 1))

    def finish(self) -> int:
        """Publish the file; returns its size in bytes."""
        self._file.close()
        size = self._draft.stat().st_size
        os.replace(self._draft, self._path)
        return size

    def discard(self) -> None:
        self._file.close()
        self._draft.unlink(missing_ok=True)


class _AacFile:
    """Writes AAC in ADTS frames, which hold no metadata. Raises OSError."""

    def __init__(self, path: Path, sample_rate: int) -> None:
        self._bytes = path.open("wb")
        self._container = av.open(self._bytes, "w", format="adts")
        self._stream = self._container.add_stream("aac", rate=sample_rate, layout="mono")
        self._rate = sample_rate

    def write(self, samples: Samples) -> None:
        if not len(samples):
            return
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples)[None], "fltp", "mono")
        frame.sample_rate = self._rate
        self._encode(frame)

    def close(self) -> None:
        if self._bytes.closed:
            return
        try:
            self._encode(None)
            self._container.close()
        finally:
            self._bytes.close()

    def _encode(self, frame: av.AudioFrame | None) -> None:
        try:
            self._container.mux(self._stream.encode(frame))
        except FFmpegError as error:
            raise OSError(str(error)) from error
