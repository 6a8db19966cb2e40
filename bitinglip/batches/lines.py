"""Reads the lines of a batch: its input, checked, and its results after a stop."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import msgspec

from bitinglip.wire.batches import LineError, RequestLine, ResultLine, Usage

_MOST_ERRORS = 100
_REQUEST = msgspec.json.Decoder(RequestLine)


_RESULT = msgspec.json.Decoder(ResultLine)


@dataclass(frozen=True, slots=True)
class Line:
    """Says where a request of the input is, and of which result it must have one."""

    offset: int
    size: int
    mark: bytes  #: of its custom_id


@dataclass(slots=True)
class Scan:
    """Holds the lines of an input, or what is wrong with them."""

    lines: list[Line] = field(default_factory=list)
    errors: list[LineError] = field(default_factory=list)


def mark_of(custom_id: str) -> bytes:
    """Return what stands for an id in memory, whatever its length."""
    return blake2b(custom_id.encode(), digest_size=16).digest()


def scan(path: Path, url: str, *, most_lines: int, longest: int) -> Scan:
    """Check all lines of an input; blank ones are no requests. Raises OSError."""
    found, marks = Scan(), set[bytes]()
    with path.open("rb") as file:
        for number, offset, raw in _lines(file, longest):
            if len(found.errors) >= _MOST_ERRORS:
                return found
            if not raw.strip():
                continue
            if len(found.lines) >= most_lines:
                text = f"A batch may have at most {most_lines} requests."
                found.errors = [LineError("too_many_tasks", text)]
                return found
            request = _checked(raw, url, longest)
            if isinstance(request, tuple):
                found.errors.append(LineError(request[0], request[1], number, request[2]))
                continue
            mark = mark_of(request.custom_id)
            if mark in marks:
                text = "An earlier line has the same custom_id."
                found.errors.append(LineError("duplicate_custom_id", text, number, "custom_id"))
                continue
            marks.add(mark)
            found.lines.append(Line(offset, len(raw), mark))
    if not found.lines and not found.errors:
        found.errors.append(LineError("empty_file", "The input file holds no request."))
    return found


def read(path: Path, line: Line) -> RequestLine:
    """Read a request that was checked. Raises OSError, or msgspec.DecodeError."""
    with path.open("rb") as file:
        file.seek(line.offset)
        return _REQUEST.decode(file.read(line.size))


@dataclass(slots=True)
class Recovered:
    """Holds what a file of results says."""

    marks: list[bytes] = field(default_factory=list)
    size: int = 0  #: bytes of its whole lines
    usage: Usage = field(default_factory=Usage)


def usage_of(result: bytes) -> Usage:
    """Return the tokens that a result of ours counts."""
    return _RESULT.decode(result).usage()


def recover(path: Path) -> Recovered:
    """Read the results in a file, and cut off what a stop in the middle of a write has left.

    Raises OSError.
    """
    found = Recovered()
    if not path.exists():
        return found
    with path.open("r+b") as file:
        for raw in file:
            try:
                result = _RESULT.decode(raw)
            except (msgspec.DecodeError, RecursionError):
                break
            if not raw.endswith(b"\n"):
                break
            found.marks.append(mark_of(result.custom_id))
            found.usage.add(result.usage())
            found.size += len(raw)
        file.truncate(found.size)
    return found


def _lines(file: BinaryIO, longest: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield number, offset and bytes of each line; of one that is too long the beginning."""
    number, offset = 0, 0
    while raw := file.readline(longest + 2):
        number += 1
        yield number, offset, raw
        offset += len(raw)
        while not raw.endswith(b"\n") and (raw := file.readline(1 << 20)):
            offset += len(raw)


def _checked(raw: bytes, url: str, longest: int) -> RequestLine | tuple[str, str, str | None]:
    """Return the request of a line; else code, message and field of what is wrong with it."""
    if len(raw.rstrip(b"\r\n")) > longest:
        return "line_too_long", f"A line may have at most {longest} bytes.", None
    try:
        request = _REQUEST.decode(raw)
    except msgspec.ValidationError as error:
        return "invalid_request", f"{error}.", None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "invalid_json_line", "This line is no JSON object.", None
    if request.url != url:
        return "mismatched_endpoint", f"The url must be the batch's endpoint, {url}.", "url"
    if not bytes(request.body).startswith(b"{"):
        return "invalid_request", "The body must be an object.", "body"
    return request
