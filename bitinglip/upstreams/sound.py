"""Tells how long sounds from other servers last, by their headers; no sound is decoded. Pure."""

import struct
from collections.abc import Callable, Mapping
from typing import BinaryIO, NamedTuple

from bitinglip.upstreams.answer import BadAnswer

_MOST_HEAD = 64 << 10  #: bytes before the samples of a WAV
_ENDLESS = 0x7FFF0000  #: sizes from here on, and 0, stand for as much as comes
_LEAST_RATE, _MOST_RATE = 8000, 192_000
_PCM, _EXTENSIBLE = 1, 0xFFFE
_OPUS_RATE = 48_000
_ANY_PAGES, _OPUS_PAGES = 1000, 400  #: of any Ogg; of a second: a packet lasts 2.5 ms at least
_FLAC_HEAD = 42
#: of MPEG audio by version (2.5, none, 2, 1): rates, and of its layer III bits a second
_MP3_RATES = ((11025, 12000, 8000), (), (22050, 24000, 16000), (44100, 48000, 32000))
_MP3_KBITS = (
    *((0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),) * 3,
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
)
_MPEG_1, _LAYER_3 = 3, 1
_TAGS = (b"TAG", b"APET", b"LYRI", b"3DI")  #: of what may come after the frames
_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
_AAC_SAMPLES = 1024  #: of a block


class WavHead(NamedTuple):
    start: int  #: where the samples begin
    rate: int
    size: int | None  #: bytes of samples; None: all that come


class Length(NamedTuple):
    samples: int
    rate: int


def wav_head(data: bytes | bytearray) -> WavHead | None:
    """Parse the header of a WAV; None if more bytes have to come. Raises BadAnswer."""
    if not b"RIFF".startswith(data[:4]) or (len(data) >= 12 and data[8:12] != b"WAVE"):
        raise BadAnswer("its sound is no WAV.")
    at, rate = 12, None
    while at + 8 <= len(data):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind == b"data":
            if rate is None:
                raise BadAnswer("its sound has no format.")
            return WavHead(at + 8, rate, size if 0 < size < _ENDLESS else None)
        if kind == b"fmt ":
            if len(data) < at + 24:
                return None
            rate = _wav_rate(data[at + 8 : at + 24])
        at += 8 + size + size % 2
        if at > _MOST_HEAD:
            raise BadAnswer("its sound has too long a header.")
    return None


def _wav_rate(data: bytes | bytearray) -> int:
    kind, channels, rate, _, _, bits = struct.unpack("<HHIIHH", data)
    if kind not in (_PCM, _EXTENSIBLE) or (channels, bits) != (1, 16):
        raise BadAnswer("its sound has not samples of 16 bits, of one channel.")
    if not _LEAST_RATE <= rate <= _MOST_RATE:
        raise BadAnswer("its sound has a sample rate that none has.")
    return int(rate)


def length_of(file: BinaryIO, kind: str, most_seconds: float) -> Length:
    """Return how long a compressed sound is.

    Raises BadAnswer for what is none of its kind, and for one that is longer, as soon as that is
    seen: frames may be of a few bytes, and each takes a while.
    """
    found = _READERS[kind](file, most_seconds)
    if found.samples <= 0:
        raise BadAnswer("its answer holds no sound.")
    return found


def _flac(file: BinaryIO, _most_seconds: float) -> Length:
    head = file.read(_FLAC_HEAD)
    if len(head) < _FLAC_HEAD or head[:4] != b"fLaC" or head[4] & 0x7F:
        raise BadAnswer("its sound is no FLAC.")
    facts = int.from_bytes(head[18:26])  # rate: 20 bits, channels 3, bits of a sample 5, samples 36
    rate, samples = facts >> 44, facts & (1 << 36) - 1
    if not rate or not samples:
        raise BadAnswer("its sound does not tell how long it is.")
    return Length(samples, rate)


def _opus(file: BinaryIO, most_seconds: float) -> Length:
    last, skipped, pages = 0, -1, 0
    while head := file.read(27):
        pages += 1
        if pages > _ANY_PAGES + most_seconds * _OPUS_PAGES:
            raise BadAnswer("its sound has more parts than the text can have.")
        if len(head) < 27 or head[:4] != b"OggS":
            raise BadAnswer("its sound is no Ogg.")
        body = file.read(sum(file.read(head[26])))
        if skipped < 0:
            if body[:8] != b"OpusHead" or len(body) < 19:
                raise BadAnswer("its sound is no Opus.")
            skipped = int.from_bytes(body[10:12], "little")
        granule = int.from_bytes(head[6:14], "little", signed=True)
        last = max(last, granule)
    return Length(last - max(skipped, 0), _OPUS_RATE)


def _mp3(file: BinaryIO, most_seconds: float) -> Length:
    tag = file.read(10)
    after = 0
    if tag[:3] == b"ID3" and len(tag) == 10:
        after = 10 + sum((byte & 0x7F) << 7 * (3 - n) for n, byte in enumerate(tag[6:10]))
    file.seek(after)
    return _frames(file, 4, _mp3_frame, most_seconds)


def _mp3_frame(head: bytes) -> tuple[int, int, int] | None:
    """Return bytes, samples and rate of a frame by its header; None if that is none."""
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    kbits, rate = head[2] >> 4, head[2] >> 2 & 3
    if head[0] != 0xFF or head[1] < 0xE0 or version == 1 or layer != _LAYER_3:
        return None
    if not 0 < kbits < 15 or rate == 3:
        return None
    samples, hertz = 1152 if version == _MPEG_1 else 576, _MP3_RATES[version][rate]
    size = samples // 8 * _MP3_KBITS[version][kbits] * 1000 // hertz + (head[2] >> 1 & 1)
    return size, samples, hertz


def _aac(file: BinaryIO, most_seconds: float) -> Length:
    return _frames(file, 7, _aac_frame, most_seconds)


def _aac_frame(head: bytes) -> tuple[int, int, int] | None:
    rate = head[2] >> 2 & 15
    size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    if head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or rate >= len(_AAC_RATES) or size < 7:
        return None
    return size, _AAC_SAMPLES * ((head[6] & 3) + 1), _AAC_RATES[rate]


def _frames(
    file: BinaryIO,
    head_size: int,
    read: Callable[[bytes], tuple[int, int, int] | None],
    most_seconds: float,
) -> Length:
    """Count the samples of frames that follow one another to the end, or to a tag there."""
    samples = rate = 0
    while head := file.read(head_size):
        if head.startswith(_TAGS):
            break
        found = read(head) if len(head) == head_size else None
        if found is None or (rate and found[2] != rate):
            raise BadAnswer("its sound is not of the format that was asked for.")
        size, more, rate = found
        samples += more
        if samples > most_seconds * rate:
            raise BadAnswer("its sound is longer than the text can be.")
        file.seek(size - head_size, 1)
    return Length(samples, rate)


_READERS: Mapping[str, Callable[[BinaryIO, float], Length]] = {
    "flac": _flac,
    "ogg": _opus,
    "mp3": _mp3,
    "aac": _aac,
}
