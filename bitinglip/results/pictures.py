"""Reads the size of a picture in its header; the pixels are decoded in the worker."""

from collections.abc import Callable
from typing import BinaryIO

#: of a JPEG before its pixels, and chunks of a PNG; more is none that a program has made
_MOST_SEGMENTS = 1024
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_GIF = (b"GIF87a", b"GIF89a")
_FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
_SCAN, _END = 0xDA, 0xD9
_ALONE = (0x01, *range(0xD0, 0xD9))  #: markers without a length

Size = tuple[int, int]


class NotAPicture(ValueError):
    """The bytes are no picture in PNG, JPEG or WebP."""


class IsAnimation(ValueError):
    """The picture has several frames."""


def size_of(file: BinaryIO, *, gif: bool = False) -> Size:
    """Return a picture's width and height in pixels. Raises NotAPicture or IsAnimation.

    ``gif``: a GIF is one, too, whose first frame is read. It reads headers of segments only, and
    at most a thousand of them, whatever the file holds.
    """
    head = file.read(30)
    if gif and head[:6] in _GIF:
        width, height = _little(head[6:8]), _little(head[8:10])
        if width and height:
            return width, height
    for known, read in _READERS:
        if known(head):
            file.seek(0)
            width, height = read(file)
            if width and height:
                return width, height
    raise NotAPicture


def _png(file: BinaryIO) -> Size:
    """Read IHDR; what makes an animation of a PNG stands before its pixels.

    A file with two is refused: readers differ about its size.
    """
    file.seek(len(_PNG))
    size = None
    for _ in range(_MOST_SEGMENTS):
        length, kind = int.from_bytes(_read(file, 4)), _read(file, 4)
        if size is None:
            if kind != b"IHDR" or length != 13:
                break
            size = int.from_bytes(_read(file, 4)), int.from_bytes(_read(file, 4))
            length -= 8
        elif kind == b"IHDR":
            break
        elif kind == b"IDAT":
            return size
        elif kind == b"acTL":
            if int.from_bytes(_read(file, 4)) != 1:
                raise IsAnimation
            length -= 4
        file.seek(length + 4, 1)  # and its checksum
    raise NotAPicture


def _jpeg(file: BinaryIO) -> Size:
    """Find the frame's header; a file with two is refused: readers differ about its size."""
    file.seek(len(_JPEG))
    size = None
    for _ in range(_MOST_SEGMENTS):
        marker, kind = _read(file, 2)
        if kind == 0xFF:  # it may be filled up
            file.seek(-1, 1)
            continue
        if marker != 0xFF or kind == _END:
            break
        if kind in _ALONE:
            continue
        length = int.from_bytes(_read(file, 2))
        if length < 2:
            break
        if kind == _SCAN:
            if size is None:
                break
            return size
        if kind in _FRAMES:
            if size is not None:
                break
            _, *sides = _read(file, 5)
            size = int.from_bytes(bytes(sides[2:])), int.from_bytes(bytes(sides[:2]))
            length -= 5
        file.seek(length - 2, 1)
    raise NotAPicture


def _webp(file: BinaryIO) -> Size:
    head = file.read(30)
    kind = head[12:16]
    if len(head) < (25 if kind == b"VP8L" else 30):
        raise NotAPicture
    if kind == b"VP8X":
        if head[20] & 2:
            raise IsAnimation
        return _little(head[24:27]) + 1, _little(head[27:30]) + 1
    if kind == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        return _little(head[26:28]) & 0x3FFF, _little(head[28:30]) & 0x3FFF
    if kind == b"VP8L" and head[20] == 0x2F:
        bits = _little(head[21:25])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise NotAPicture


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _read(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise NotAPicture
    return data


_READERS: tuple[tuple[Callable[[bytes], bool], Callable[[BinaryIO], Size]], ...] = (
    (lambda head: head.startswith(_PNG), _png),
    (lambda head: head.startswith(_JPEG), _jpeg),
    (lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP", _webp),
)
