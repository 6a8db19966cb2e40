"""Believes what trusted reverse proxies say of a request: its client, scheme, host and prefix.

Each proxy appends the address of whom it got the request from, so the client is the last one in
the list that is no trusted proxy; what stands before it is the client's own word. A header from
any other client change nothing.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from starlette.requests import Request
from starlette.types import Scope

from bitinglip.access.narrowing import address_allowed, plain_address
from bitinglip.api.services import services_of
from bitinglip.errors import InvalidRequest

_FOR, _PROTO = b"x-forwarded-for", b"x-forwarded-proto"
_HOST, _PREFIX, _FORWARDED = b"x-forwarded-host", b"x-forwarded-prefix", b"forwarded"
#: a proxy that hides the address, as RFC 7239 allows
_HIDDEN = re.compile(r"unknown|_[A-Za-z0-9._-]{1,64}", re.ASCII)
_NODE = re.compile(
    r"\[([0-9A-Fa-f:.]+)\](?::\d{1,5})?|([0-9.]+):\d{1,5}|([0-9A-Fa-f:.]+)", re.ASCII
)
_PAIR = re.compile(r'\s*(for|by|host|proto)=("[^"\\]*"|[^\s",;]*)\s*', re.ASCII | re.IGNORECASE)
_PATH = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+", re.ASCII)
_LONGEST_PREFIX = 256
Headers = list[tuple[bytes, bytes]]


class Proxies:
    """Knows the proxies that are trusted; without any it changes nothing."""

    def __init__(self, trusted: Sequence[str]) -> None:
        self._ranges = tuple(trusted)

    def apply(self, scope: Scope) -> bool:
        """Replace what the proxy has hidden; return whether the headers have changed, too.

        Raises InvalidRequest for headers that make no sense.
        """
        peer = scope["client"]
        if not self._ranges or peer is None or not self._trusts(peer[0]):
            return False
        headers: Headers = scope["headers"]
        forwarded = _forwarded(headers)
        client = self._client(headers, forwarded)
        if client is not None:
            scope["client"] = (client, 0)
        nearest = forwarded[-1] if forwarded else {}
        scheme = _last(headers, _PROTO) or nearest.get("proto")
        if scheme is not None:
            scope["scheme"] = _scheme(scope["type"], scheme)
        if (prefix := _last(headers, _PREFIX)) is not None:
            scope["root_path"] = _prefix(prefix)
        host = _last(headers, _HOST) or nearest.get("host")
        if host is not None:
            others = [each for each in headers if each[0] != b"host"]
            scope["headers"] = [*others, (b"host", host.encode("latin-1"))]
        return host is not None

    def _trusts(self, address: str) -> bool:
        return address_allowed(self._ranges, address)

    def _client(self, headers: Headers, forwarded: Sequence[Mapping[str, str]]) -> str | None:
        """Return the client's address; None if no header tells it."""
        told = list(_values(headers, _FOR))
        others = [each["for"] for each in forwarded if "for" in each]
        found = [self._last_stranger(each) for each in (told, others) if each]
        if len(set(found)) > 1:
            # The proxy makes one of them and passes on the other, which the client may have made.
            raise _wrong("Forwarded and X-Forwarded-For tell different clients.", "Forwarded")
        return found[0] if found else None

    def _last_stranger(self, addresses: Sequence[str]) -> str:
        """Return the last address that is no proxy's; the first if all are."""
        address = ""
        for text in reversed(addresses):
            address = _node(text)
            if not self._trusts(address):
                break
        return address


def public_url(request: Request) -> str:
    """Return the URL by which the client reaches the server, without a slash at its end."""
    own = services_of(request).settings.server.public_url
    return own or str(request.base_url).removesuffix("/")


def _values(headers: Headers, name: bytes) -> Iterable[str]:
    """Split headers of a name at their commas; several count as one that is longer."""
    for each, value in headers:
        if each == name:
            yield from (part.strip() for part in value.decode("latin-1").split(","))


def _last(headers: Headers, name: bytes) -> str | None:
    """Return what the nearest proxy has said."""
    values = list(_values(headers, name))
    return values[-1] if values else None


def _forwarded(headers: Headers) -> list[dict[str, str]]:
    """Return the pairs of each proxy, the nearest last."""
    elements = []
    for element in _values(headers, _FORWARDED):
        pairs = [_PAIR.fullmatch(pair) for pair in element.split(";")]
        known = {pair[1].lower(): pair[2].strip('"') for pair in pairs if pair is not None}
        if len(known) < len(pairs):  # one that is none, or comes twice
            raise _wrong("The Forwarded header is not valid.", "Forwarded")
        elements.append(known)
    return elements


def _node(text: str) -> str:
    """Return the address in a list of them, without its port."""
    if _HIDDEN.fullmatch(text):
        return text  # it is in no range of addresses
    match = _NODE.fullmatch(text)
    address = plain_address(next(filter(None, match.groups()))) if match else None
    if address is None:
        raise _wrong("The list of forwarded addresses is not valid.", "X-Forwarded-For")
    return address


def _scheme(kind: str, text: str) -> str:
    secure = {"http": False, "https": True, "ws": False, "wss": True}.get(text.lower())
    if secure is None:
        raise _wrong("The forwarded scheme is http or https.", "X-Forwarded-Proto")
    return ("ws" if kind == "websocket" else "http") + ("s" if secure else "")


def _prefix(text: str) -> str:
    path = text.removesuffix("/")
    if path and (len(path) > _LONGEST_PREFIX or not _PATH.fullmatch(path)):
        raise _wrong("The forwarded prefix is no plain path.", "X-Forwarded-Prefix")
    return path


def _wrong(message: str, header: str) -> InvalidRequest:
    return InvalidRequest(message, param=header)
