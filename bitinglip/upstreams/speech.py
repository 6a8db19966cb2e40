"""Converts speech jobs into requests of OpenAI's API, and the sound that comes into a file."""

import asyncio
import contextlib
import os
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, BinaryIO

from bitinglip.upstreams.answer import BadAnswer
from bitinglip.upstreams.request import Request
from bitinglip.upstreams.sound import length_of, wav_head
from workers.engines.base import Refused
from workers.protocol import (
    SOFTWARE,
    SOUND_LABEL,
    AudioDelta,
    Event,
    SpeechDone,
    SpeechJob,
    audio_file_name,
)

_PCM_RATE = 24_000  #: of samples without a header, on OpenAI's surface
_SAMPLE_BYTES = 2
#: what a text may become: so many seconds, and more for each character of it; bytes of a second
_SECONDS, _SECONDS_PER_CHARACTER, _BYTES_PER_SECOND = 60.0, 0.5, 96_000
_MOST_BYTES = 1 << 31  #: of a sound, whatever its text
_MOST_PIECE = 1 << 19  #: bytes of samples in one event


def speech_request(job: SpeechJob, model: str) -> Request:
    """Return the request for a job's sound. Raises Refused for what cannot be had in this way."""
    if job.stream and job.format != "wav":
        text = "Only 'format' wav can be streamed from the server that this model stands for."
        raise Refused("UNSUPPORTED_PARAMETER", text, param="format")
    body: dict[str, Any] = {"model": model, "input": job.text, "response_format": _format(job)}
    optional = {
        "voice": job.voice,
        "speed": job.speed,
        "instructions": job.instructions,
        # Not OpenAI's own, but BitingLip knows them.
        "language": job.language,
        "sample_rate": None if _is_bare(job) else job.sample_rate,
        "seed": job.seed,
    }
    body |= {name: value for name, value in optional.items() if value is not None}
    return Request("audio/speech", body)


def _is_bare(job: SpeechJob) -> bool:
    """Return whether samples are asked for without a header: servers send those as they come."""
    return job.stream and job.sample_rate == _PCM_RATE


def _format(job: SpeechJob) -> str:
    if _is_bare(job):
        return "pcm"
    return "opus" if job.format == "ogg" else job.format


async def speech_done(
    job: SpeechJob,
    media_type: str,
    parts: AsyncIterator[bytes],
    tell: Callable[[list[Event]], Awaitable[None]],
) -> SpeechDone:
    """Write a job's file from audio that comes in parts, and send a stream's samples on the way.

    Raises BadAnswer, or Refused if the disk does not take it. The file appears once it is whole.
    """
    if media_type.startswith(("application/json", "text/")):
        raise BadAnswer("its answer is no sound.")
    file, index = _SoundFile(job), 0
    try:
        await asyncio.to_thread(file.open)
        async for part in parts:
            samples = await asyncio.to_thread(file.take, part)
            for at in range(0, len(samples) if job.stream else 0, _MOST_PIECE):
                piece = samples[at : at + _MOST_PIECE]
                delta = AudioDelta(
                    id=job.id, index=index, samples=piece, sample_rate=file.sample_rate
                )
                await tell([delta])
                index += 1
        return await asyncio.to_thread(file.finish)
    except OSError as error:
        raise Refused("DISK_FULL", "The audio could not be written.") from error
    finally:  # beside the event loop: a part may be on its way to the disk
        await asyncio.to_thread(file.discard)


class _SoundFile:
    """Writes audio as it comes, and checks that it has the job's format."""

    _file: BinaryIO

    def __init__(self, job: SpeechJob) -> None:
        self._job = job
        self._path = Path(job.folder) / audio_file_name(job.id, job.format)
        self._draft = self._path.with_name(f"{self._path.name}.part")
        self._most_seconds = _SECONDS + _SECONDS_PER_CHARACTER * len(job.text) / (job.speed or 1.0)
        self._taken = self._written = 0
        self._head: bytearray | None = bytearray()  #: what has come of it, until it is whole
        self._left: int | None = None  #: bytes of samples that are to come; None: any number
        self._rest = b""  #: half of a sample
        self.sample_rate = 0

    def open(self) -> None:
        self._draft.parent.mkdir(mode=0o700, exist_ok=True)  # it may have been removed
        self._file = self._draft.open("wb")
        if self._job.format != "wav":
            return
        self._file.write(_own_head(self._job, _PCM_RATE, 0))
        if _is_bare(self._job):
            self._head, self.sample_rate = None, _PCM_RATE

    def take(self, part: bytes) -> bytes:
        """Write a part; return the samples that are in it. Raises BadAnswer or OSError."""
        self._taken += len(part)
        if self._taken > min(self._most_seconds * _BYTES_PER_SECOND, _MOST_BYTES):
            raise BadAnswer("its sound is longer than the text can be.")
        if self._job.format != "wav":
            self._file.write(part)
            return b""
        samples = self._samples(part)
        self._file.write(samples)
        self._written += len(samples)
        return samples

    def _samples(self, part: bytes) -> bytes:
        """Return the samples in a part of a WAV, as many as are whole."""
        if self._head is not None:
            self._head += part
            if (found := wav_head(self._head)) is None:
                return b""
            if self._job.sample_rate not in (None, found.rate):
                raise BadAnswer("its sound has not the sample rate that was asked for.")
            part, self._head = bytes(self._head[found.start :]), None
            self.sample_rate, self._left = found.rate, found.size
        if self._left is not None:
            part = part[: self._left]
            self._left -= len(part)
        whole = self._rest + part
        even = len(whole) - len(whole) % _SAMPLE_BYTES
        self._rest = whole[even:]
        return whole[:even]

    def finish(self) -> SpeechDone:
        """Publish the file. Raises BadAnswer or OSError."""
        if self._job.format == "wav":
            samples, rate = self._end_wav(), self.sample_rate
        else:
            self._file.close()
            with self._draft.open("rb") as file:
                samples, rate = length_of(file, self._job.format, self._most_seconds)
        if samples > self._most_seconds * rate:
            raise BadAnswer("its sound is longer than the text can be.")
        size = self._draft.stat().st_size
        os.replace(self._draft, self._path)
        return SpeechDone(
            id=self._job.id,
            format=self._job.format,
            bytes=size,
            sample_rate=rate,
            duration=samples / rate,
            sentences=1,  # as far as is known here
            voice=self._job.voice,
        )

    def _end_wav(self) -> int:
        """Write the header again, now that all is known; return the number of samples."""
        if self._head is not None or self._left:
            raise BadAnswer("its sound ended before its end.")
        if not self._written:
            raise BadAnswer("its answer holds no sound.")
        self._file.seek(0)
        self._file.write(_own_head(self._job, self.sample_rate, self._written))
        self._file.close()
        return self._written // _SAMPLE_BYTES

    def discard(self) -> None:
        """Remove what was written of a file that has not become whole."""
        with contextlib.suppress(AttributeError, OSError):  # it may not have been opened
            self._file.close()
        with contextlib.suppress(OSError):
            self._draft.unlink()


def _own_head(job: SpeechJob, rate: int, size: int) -> bytes:
    """Return what stands before a WAV's samples, with the label of a machine's voice."""
    form = struct.pack("<HHIIHH", 1, 1, rate, rate * _SAMPLE_BYTES, _SAMPLE_BYTES, 16)
    label = b""
    if job.metadata:
        told = ((b"ISFT", SOFTWARE), (b"ICMT", SOUND_LABEL))
        texts = b"".join(_chunk(name, text.encode() + b"\0") for name, text in told)
        label = _chunk(b"LIST", b"INFO" + texts)
    inner = b"WAVE" + _chunk(b"fmt ", form) + label + b"data" + size.to_bytes(4, "little")
    return b"RIFF" + (len(inner) + size).to_bytes(4, "little") + inner


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + len(data).to_bytes(4, "little") + data + b"\0" * (len(data) % 2)
