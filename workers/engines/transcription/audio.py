"""Decodes audio files of any usual format to blocks of samples of one channel and a known rate."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
from av.error import FFmpegError, InvalidDataError
from numpy.typing import NDArray

from workers.engines.base import Refused

MAX_BYTES = 4 << 30
MIN_RATE = 1_000  #: samples in a second
#: Files that name other files or addresses to open (playlists, lists to join) are none of these.
_CONTAINERS = "wav,w64,flac,ogg,mp3,aac,mov,matroska,aiff,au,caf,amr,asf"
_CODECS = (
    "aac,adpcm_ima_wav,adpcm_ms,alac,amrnb,amrwb,flac,mp2,mp2float,mp3,mp3float,opus,pcm_alaw,"
    "pcm_f32be,pcm_f32le,pcm_f64be,pcm_f64le,pcm_mulaw,pcm_s16be,pcm_s16le,pcm_s24be,pcm_s24le,"
    "pcm_s32be,pcm_s32le,pcm_s8,pcm_u8,vorbis,wmav1,wmav2"
)
_UNREADABLE = "is not a sound file that can be read"

Samples = NDArray[np.float32]


@dataclass(slots=True, frozen=True)
class Bounds:
    """Limits what a file may hold."""

    seconds: float
    channels: int
    sample_rate: int


def read(path: Path, rate: int, most: Bounds, *, block: int) -> Iterator[Samples]:
    """Yield blocks of so many samples, the last one shorter; no more than a block is held.

    Raises Refused for what is no audio, or more than ``most``.
    """
    try:
        with path.open("rb") as file:
            if path.stat().st_size > MAX_BYTES:
                raise _bad(f"has more than {MAX_BYTES >> 30} GiB")
            blocks = _blocks(_decoded(file, rate, most), block)
            yield from _limited(blocks, rate, most.seconds)
    except (OSError, ValueError, FFmpegError) as error:
        raise _bad(_UNREADABLE) from error


def _limited(blocks: Iterator[Samples], rate: int, max_seconds: float) -> Iterator[Samples]:
    """Yield the blocks while they are short enough: a file's header may say anything."""
    count = 0
    for block in blocks:
        count += len(block)
        if count > max_seconds * rate:
            raise _bad(f"is longer than {max_seconds:g} seconds")
        yield block
    if not count:
        raise _bad("holds no sound")


def _blocks(pieces: Iterator[Samples], size: int) -> Iterator[Samples]:
    held: list[Samples] = []
    count = 0
    for piece in pieces:
        held.append(piece)
        count += len(piece)
        if count >= size:
            whole = np.concatenate(held)
            yield whole[:size]
            held, count = [whole[size:]], count - size
    if count:
        yield np.concatenate(held)


def _decoded(file: IO[bytes], rate: int, most: Bounds) -> Iterator[Samples]:
    options = {"format_whitelist": _CONTAINERS, "codec_whitelist": _CODECS}
    with av.open(file, options=options, metadata_errors="ignore") as container:
        if not container.streams.audio:
            raise _bad("holds no sound")
        stream = container.streams.audio[0]
        _check(stream.codec_context, most)
        # To integers: several channels become one without being too loud for it, and there is
        # nothing among them that is no number, which files of floats may hold.
        resampler = av.AudioResampler("s16", "mono", rate)
        for frame in chain(_frames(container, stream), (None,)):
            for piece in resampler.resample(frame):
                yield piece.to_ndarray()[0].astype(np.float32) / 32_768


def _check(context: Any, most: Bounds) -> None:
    if context.name not in _CODECS.split(","):
        raise _bad(f"is coded in a way that is not read here ({context.name})")
    if not 1 <= context.channels <= most.channels:
        raise _bad(f"has {context.channels} channels, not 1 to {most.channels}")
    rate = context.sample_rate
    if not MIN_RATE <= rate <= most.sample_rate:
        raise _bad(f"has {rate} samples in a second, not {MIN_RATE} to {most.sample_rate}")


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    """Decode all frames; damaged ones are left out, as players do, a damaged file is refused."""
    good = broken = 0
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except InvalidDataError:
            broken += 1
            continue
        good += len(frames)
        yield from frames
    if broken > good:
        raise _bad(_UNREADABLE)


def _bad(what: str) -> Refused:
    return Refused("INVALID_REQUEST", f"'file' {what}.", param="file")
