"""Sends a form with a file, a part of it at a time."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

_CHUNK = 256 << 10  #: bytes that are read at once


class Form:
    """Is the body of one request; each reading begins at its beginning."""

    def __init__(self, fields: Sequence[tuple[str, str]], file: Path) -> None:
        boundary = secrets.token_hex(16)
        self.content_type = f"multipart/form-data; boundary={boundary}"
        part = f"--{boundary}\r\nContent-Disposition: form-data; name="
        begin = "".join(f'{part}"{name}"\r\n\r\n{value}\r\n' for name, value in fields)
        # The client's name of its file stays here: the server looks at what it holds.
        head = f'{part}"file"; filename="audio"\r\nContent-Type: application/octet-stream\r\n\r\n'
        self._begin = (begin + head).encode()
        self._end = f"\r\n--{boundary}--\r\n".encode()
        self._file = file

    async def length(self) -> int:
        """Return how many bytes it has. Raises OSError."""
        found = await asyncio.to_thread(self._file.stat)
        return len(self._begin) + found.st_size + len(self._end)

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield the body. Raises OSError."""
        yield self._begin
        with await asyncio.to_thread(self._file.open, "rb") as file:
            while data := await asyncio.to_thread(file.read, _CHUNK):
                yield data
        yield self._end
