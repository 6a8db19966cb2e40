"""Sends a request in JSON, a part of one at a time, with pictures from their files."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

_CHUNK = 192 << 10  #: bytes that are read or sent at once; base64 has no rest of them
_PLACE = b"\0"  #: JSON holds no such byte: those that clients write are escaped in it


def picture_url(kind: str) -> msgspec.Raw:
    """Return the ``data:`` URL of a picture whose bytes come as the request is sent."""
    return msgspec.Raw(b'"data:image/%b;base64,%b"' % (kind.encode(), _PLACE))


class JsonBody:
    """Is the body of one request; each reading begins at its beginning."""

    content_type = "application/json"

    def __init__(self, data: bytes, pictures: Sequence[Path] = ()) -> None:
        """``pictures``: the files of the ``picture_url``s in it, in their order."""
        self._texts = data.split(_PLACE) if pictures else [data]
        self._pictures = pictures
        assert len(self._texts) == len(pictures) + 1

    async def length(self) -> int:
        """Return how many bytes it has. Raises OSError."""
        sizes = [(await asyncio.to_thread(each.stat)).st_size for each in self._pictures]
        return sum(map(len, self._texts)) + sum((size + 2) // 3 * 4 for size in sizes)

    async def parts(self) -> AsyncIterator[bytes | memoryview]:
        """Yield the body. Raises OSError."""
        for text, path in zip(self._texts, (*self._pictures, None), strict=True):
            for at in range(0, len(text), _CHUNK):
                yield memoryview(text)[at : at + _CHUNK]
            if path is None:
                return
            with await asyncio.to_thread(path.open, "rb") as file:
                while data := await asyncio.to_thread(_read, file):
                    yield data


def _read(file: BinaryIO) -> bytes:
    """Read the next bytes of a file in base64; only the last ones are fewer than a chunk."""
    return b64encode(file.read(_CHUNK))
