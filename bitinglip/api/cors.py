"""Tells browsers which pages of other origins may read answers (CORS), errors included.

It only ever widens what browsers allow; ``EdgeChecks`` refuses foreign pages by itself.
"""

import re
from collections.abc import Collection, Mapping

from starlette.responses import Response

from bitinglip.access.limits import headers as limit_headers
from bitinglip.api.hosts import Origins, foreign_page

Headers = tuple[tuple[bytes, bytes], ...]
_METHODS = "GET, POST, PATCH, DELETE"
_REQUEST_HEADERS = "Authorization, Cache-Control, Content-Type, Prefer, X-API-Key, X-Request-ID"
_EXPOSED = (
    "Deprecation",
    "Location",
    "Sunset",
    "X-Request-ID",
    "X-Cache",
    "X-Ignored-Fields",
    "X-Queue-Position",
    "X-Should-Retry",
    "X-BitingLip-Overhead-Ms",
    *limit_headers.NAMES,
)
#: a header that a page may send, too: its client's own, such as x-stainless-os of OpenAI's
_NAME = re.compile(rb"[a-z0-9][a-z0-9_-]{0,63}", re.ASCII | re.IGNORECASE)
_MOST_NAMES = 40
_MAX_AGE = 600  #: seconds for which a browser remembers what a preflight was answered
_VARY = (b"vary", b"Origin")


class Cors:
    """Knows the allowed origins; without any it adds nothing."""

    def __init__(self, origins: Collection[str]) -> None:
        self._on = bool(origins)
        self._origins = Origins(origins)
        self._everywhere = "*" in origins
        self._exposed = (b"access-control-expose-headers", ", ".join(_EXPOSED).encode())

    def headers(self, fields: Mapping[bytes, bytes]) -> Headers:
        """Return what to add to the response, whatever its status."""
        if not self._on:
            return ()
        origin = fields.get(b"origin")
        if origin is None or not self._allows(origin):
            return (_VARY,)
        allowed = b"*" if self._everywhere else origin
        return ((b"access-control-allow-origin", allowed), self._exposed, _VARY)

    def preflight(self, method: str, fields: Mapping[bytes, bytes]) -> Response | None:
        """Answer a browser that asks before a request; None for any other request.

        Needs no key, as browsers send none. Raises InsufficientScope for a foreign origin.
        """
        if not self._on or method != "OPTIONS" or b"access-control-request-method" not in fields:
            return None
        if not self._allows(fields.get(b"origin", b"")):
            raise foreign_page()
        return Response(
            headers={
                "access-control-allow-methods": _METHODS,
                "access-control-allow-headers": _allowed_headers(fields),
                "access-control-max-age": str(_MAX_AGE),
            },
        )

    def _allows(self, origin: bytes) -> bool:
        return self._origins.accept(origin.decode("latin-1"), "", other_site=True)


def _allowed_headers(fields: Mapping[bytes, bytes]) -> str:
    """Return the headers that a page of an allowed origin may send: ours, and those it asks for.

    What a header means is decided by the request itself, from any origin.
    """
    asked = fields.get(b"access-control-request-headers", b"").split(b",")[:_MOST_NAMES]
    names = [name.strip() for name in asked]
    ours = _REQUEST_HEADERS.lower().split(", ")
    more = [name.decode() for name in names if _NAME.fullmatch(name)]
    return ", ".join([_REQUEST_HEADERS, *(name for name in more if name.lower() not in ours)])
