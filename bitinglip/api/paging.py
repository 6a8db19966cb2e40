"""Cuts lists into pages, and checks query parameters."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from bitinglip.api.body import json_response
from bitinglip.errors import InvalidRequest, UnsupportedParameter

MAX_LIMIT = 1000
MAX_OFFSET = 2**31


@dataclass(frozen=True)
class Page:
    """Names the requested part of a list."""

    limit: int
    offset: int

    def of(self, rows: Sequence[Any]) -> Response:
        """Respond with this part of all rows: ``{data, total, limit, offset}``."""
        return self.part(rows[self.offset : self.offset + self.limit], len(rows))

    def part(self, rows: Sequence[Any], total: int) -> Response:
        """Respond with rows that are this part already."""
        return json_response(
            {"data": rows, "total": total, "limit": self.limit, "offset": self.offset}
        )


def read_page(request: Request, *filters: str) -> Page:
    """Read ``limit`` and ``offset``. Raises InvalidRequest or UnsupportedParameter."""
    check_query(request, "limit", "offset", *filters)
    return Page(
        _number(request, "limit", 50, least=1, most=MAX_LIMIT),
        _number(request, "offset", 0, least=0, most=MAX_OFFSET),
    )


def check_query(request: HTTPConnection, *known: str) -> None:
    """Raise UnsupportedParameter for a query parameter that is not ``known``."""
    for name in request.query_params:
        if name not in known:
            shown = name[:64]
            raise UnsupportedParameter(f"'{shown}' is no parameter of this route.", param=shown)


def _number(request: Request, name: str, default: int, *, least: int, most: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if text.isascii() and text.isdigit() and len(text) < 12 and least <= int(text) <= most:
        return int(text)
    raise InvalidRequest(f"'{name}' must be a number from {least} to {most}.", param=name)
