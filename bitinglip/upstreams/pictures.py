"""Checks that pictures from other servers are whole, without decoding a pixel. Pure."""

import io
import zlib
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from bitinglip.results.pictures import IsAnimation, NotAPicture, size_of
from bitinglip.upstreams.answer import BadAnswer

_PNG = b"\x89PNG\r\n\x1a\n"
#: samples of a pixel by a PNG's colour type
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = (1, 2, 4, 8, 16)
#: chunks of a PNG that tell how it was made, or hold what no picture needs
_TOLD = (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME")
_MOST_CHUNKS = 1 << 15  #: of a PNG: empty ones would take far more memory than they have bytes
_PIECE = 1 << 20  #: bytes of pixels that are unpacked at once


class _Chunk(NamedTuple):
    kind: bytes
    data: memoryview
    whole: memoryview  #: with its length and its checksum


def checked_picture(data: bytes, kind: str, size: tuple[int, int], *, told: bool) -> bytes:
    """Return the picture, if it is a whole one of a format and a size. Raises BadAnswer.

    ``told``: what it says of how it was made stays; a PNG alone is freed of that.
    """
    try:
        found = size_of(io.BytesIO(data))
    except (NotAPicture, IsAnimation) as error:
        raise BadAnswer("its answer holds what is no picture.") from error
    if found != size:
        raise BadAnswer("its picture has not the size that was asked for.")
    match kind:
        case "png" if data.startswith(_PNG):
            return _checked_png(data, told=told)
        case "jpeg" if data.startswith(b"\xff\xd8") and data.endswith(b"\xff\xd9"):
            return data
        case "webp" if data.startswith(b"RIFF") and len(data) == _webp_size(data):
            return data
    raise BadAnswer("its picture is not whole, or not of the format that was asked for.")


def _webp_size(data: bytes) -> int:
    return 8 + int.from_bytes(data[4:8], "little")


def _checked_png(data: bytes, *, told: bool) -> bytes:
    """Check all chunks, and that the pixels are as many as there have to be."""
    chunks = list(islice(_chunks(memoryview(data)[len(_PNG) :]), _MOST_CHUNKS))
    if chunks[-1].kind != b"IEND":
        raise BadAnswer("its picture ends early.")
    _check_pixels(chunks)
    if told:
        return data
    return b"".join([_PNG, *(each.whole for each in chunks if each.kind not in _TOLD)])


def _chunks(rest: memoryview) -> Iterator[_Chunk]:
    while rest:
        size = int.from_bytes(rest[:4])
        whole = rest[: size + 12]
        if len(whole) < size + 12 or zlib.crc32(whole[4:-4]) != int.from_bytes(whole[-4:]):
            raise BadAnswer("its picture is damaged.")
        yield _Chunk(bytes(whole[4:8]), whole[8:-4], whole)
        rest = rest[size + 12 :]


def _check_pixels(chunks: list[_Chunk]) -> None:
    head = chunks[0].data
    width, height = int.from_bytes(head[:4]), int.from_bytes(head[4:8])
    depth, colours, is_interlaced = head[8], head[9], head[12]
    if colours not in _SAMPLES or depth not in _DEPTHS or is_interlaced > 1:
        raise BadAnswer("its picture has a form that none has.")
    row = 1 + (width * depth * _SAMPLES[colours] + 7) // 8
    # Interlaced, each of seven passes has rows of its own, which are filled up to whole bytes.
    most = row * height + (16 * (height + 8) if is_interlaced else 0)
    unpacked = _unpacked([each.data for each in chunks if each.kind == b"IDAT"], most)
    if unpacked > most or (unpacked < most and not is_interlaced):
        raise BadAnswer("its picture has not all of its pixels.")


def _unpacked(parts: list[memoryview], most: int) -> int:
    """Return how many bytes the pixels are, and stop beyond ``most``."""
    unpacker, count = zlib.decompressobj(), 0
    try:
        for part in parts:
            rest: bytes | memoryview = part
            while rest and count <= most:
                count += len(unpacker.decompress(rest, _PIECE))
                rest = unpacker.unconsumed_tail
        while count <= most and (more := unpacker.decompress(unpacker.unconsumed_tail, _PIECE)):
            count += len(more)
    except zlib.error as error:
        raise BadAnswer("its picture is damaged.") from error
    if not unpacker.eof and count <= most:
        raise BadAnswer("its picture ends early.")
    return count
