"""Splits a multipart form into fields and files; files go to the home's disk as they come."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from bitinglip.errors import InvalidRequest, UnsupportedParameter
from bitinglip.results.uploads import Incoming, ReceivedFile

_MOST_FIELDS = 64
_MOST_FILES = 16
_LONGEST_FIELD = 64 * 1024  #: bytes
_LONGEST_NAME = 256  #: bytes of a file's name that are kept
_INVALID = "The form is not valid, or has too many parts."


@dataclass(slots=True)
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    name: str = ""
    file: ReceivedFile | None = None
    data: bytearray = field(default_factory=bytearray)  #: the field's, or what is to be written


class FormParser:
    """Takes a form in parts of any size. ``names``: the files that the route knows.

    Every method raises InvalidRequest or UnsupportedParameter, and what ``Incoming`` raises.
    """

    def __init__(
        self,
        boundary: bytes,
        names: Collection[str],
        incoming: Incoming,
        grow: Callable[[int], None],
    ) -> None:
        """``grow`` counts the bytes of fields, which stay in memory."""
        self.fields: list[tuple[str, str]] = []
        self.files: dict[str, list[ReceivedFile]] = {}
        self._names = names
        self._incoming = incoming
        self._grow = grow
        self._part: _Part | None = None
        self._header = b"", b""
        self._parts = 0
        self._written: list[tuple[ReceivedFile, bytearray]] = []
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._header_name,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_end,
                    "on_part_data": self._data,
                    "on_part_end": self._end,
                },
            )
        except FormParserError:
            raise InvalidRequest(_INVALID) from None

    async def feed(self, data: bytes) -> None:
        """Take the next bytes of the body."""
        try:
            self._parser.write(data)
        except FormParserError:
            raise InvalidRequest(_INVALID) from None
        if self._part is not None and self._part.file is not None and self._part.data:
            self._written.append((self._part.file, self._part.data))
            self._part.data = bytearray()
        for file, written in self._written:
            await self._incoming.write(file, written)
        self._written.clear()

    def finish(self) -> None:
        """Check that the form has its end."""
        if self._part is not None or not self._parts:
            raise InvalidRequest("The form is not valid, or has no end.")

    # ---- the parser's calls ----------------------------------------------------------------------

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > _MOST_FIELDS + _MOST_FILES:
            raise InvalidRequest(_INVALID)
        self._part = _Part()

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header = self._header[0] + data[start:end], b""

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header = self._header[0], self._header[1] + data[start:end]

    def _header_end(self) -> None:
        name, value = self._header
        self._now.headers[name.lower()] = value
        self._header = b"", b""

    def _headers_end(self) -> None:
        part = self._now
        _, options = parse_options_header(part.headers.get(b"content-disposition"))
        if b"name" not in options:
            raise InvalidRequest("A part of the form has no name.")
        part.name = _text(options[b"name"], "The name of a field")
        if b"filename" not in options:
            return
        if part.name not in self._names:
            shown = part.name[:64]
            raise UnsupportedParameter(f"'{shown}' is no file of this route.", param=shown)
        part.file = self._incoming.new_file()
        part.file.name = options[b"filename"][:_LONGEST_NAME].decode(errors="replace")
        self.files.setdefault(part.name, []).append(part.file)
        if sum(map(len, self.files.values())) > _MOST_FILES:
            raise InvalidRequest(_INVALID)

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self._now
        if part.file is None:
            if len(part.data) + end - start > _LONGEST_FIELD:
                shown = part.name[:64]
                raise InvalidRequest(
                    f"'{shown}' is longer than {_LONGEST_FIELD} bytes.", param=shown
                )
            self._grow(end - start)
        part.data += data[start:end]

    def _end(self) -> None:
        part, self._part = self._now, None
        if part.file is None:
            shown = part.name[:64]
            self.fields.append((part.name, _text(part.data, f"'{shown}'", shown)))
            if len(self.fields) > _MOST_FIELDS:
                raise InvalidRequest(_INVALID)
        else:
            self._written.append((part.file, part.data))

    @property
    def _now(self) -> _Part:
        if self._part is None:
            raise InvalidRequest(_INVALID)
        return self._part


def _text(data: bytes | bytearray, what: str, param: str | None = None) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"{what} is not in UTF-8.", param=param) from None
