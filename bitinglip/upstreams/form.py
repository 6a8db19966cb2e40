"""Sends a form with files, a part of one at a time."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple

_CHUNK = 256 << 10  #: bytes that are read at once


class FilePart(NamedTuple):
    """Is a file of a form; the client's name of it stays here, as servers look at what it holds."""

    name: str  #: of the field
    path: Path
    file_name: str
    media_type: str = "application/octet-stream"


class Form:
    """Is the body of one request; each reading begins at its beginning."""

    def __init__(self, fields: Sequence[tuple[str, str]], *files: FilePart) -> None:
        boundary = secrets.token_hex(16)
        self.content_type = f"multipart/form-data; boundary={boundary}"
        part = f"--{boundary}\r\nContent-Disposition: form-data; name="
        begin = "".join(f'{part}"{name}"\r\n\r\n{value}\r\n' for name, value in fields)
        heads = [
            f'{part}"{each.name}"; filename="{each.file_name}"\r\n'
            f"Content-Type: {each.media_type}\r\n\r\n"
            for each in files
        ]
        between = [f"\r\n{head}" if number else begin + head for number, head in enumerate(heads)]
        self._before = [each.encode() for each in between]  #: each file
        self._end = f"\r\n--{boundary}--\r\n".encode()
        self._files = [each.path for each in files]

    async def length(self) -> int:
        """Return how many bytes it has. Raises OSError."""
        sizes = [(await asyncio.to_thread(each.stat)).st_size for each in self._files]
        return sum(map(len, self._before)) + sum(sizes) + len(self._end)

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield the body. Raises OSError."""
        for before, path in zip(self._before, self._files, strict=True):
            yield before
            with await asyncio.to_thread(path.open, "rb") as file:
                while data := await asyncio.to_thread(file.read, _CHUNK):
                    yield data
        yield self._end
