"""Reads Host and Origin headers strictly: which names they give, and whether those are ours."""

import ipaddress
import re
import socket
from collections.abc import Collection
from functools import lru_cache
from urllib.parse import urlsplit

from bitinglip.errors import InsufficientScope, InvalidRequest
from bitinglip.settings import Server

_HOST = re.compile(r"(?:\[([0-9a-f:.]{2,45})\]|([a-z0-9._-]{1,253}))(?::([0-9]{1,5}))?", re.ASCII)
_MAX_PORT = 65535
_WILDCARDS = ("0.0.0.0", "::")
_LONGEST = 260  #: longer ones fill no cache


def foreign_page() -> InsufficientScope:
    """Return the refusal of a page that no setting allows to use the API."""
    return InsufficientScope(
        "Pages of this origin may not use the API; server.cors_origins allows more.",
        param="Origin",
    )


def foreign_host(name: str | None) -> InvalidRequest:
    """Return the refusal of a name that is not the server's; None for a malformed header."""
    if name is None:
        message = "The Host header is missing or malformed: it is to name this server."
    else:
        message = (
            f"The Host header names '{name}', to which this server does not answer; the setting "
            "server.allowed_hosts adds names."
        )
    return InvalidRequest(message, param="Host")


def normal_name(name: str) -> str:
    """Return a host name in lower case, and an IPv6 address without brackets in its short form."""
    name = name.strip().lower().removeprefix("[").removesuffix("]")
    return _short_ipv6(name) or name


def parse_host(value: str) -> str | None:
    """Return the name in a Host header without its port; None if the header is malformed."""
    return _parse(value) if len(value) <= _LONGEST else None


@lru_cache(maxsize=256)
def _parse(value: str) -> str | None:
    found = _HOST.fullmatch(value.lower())
    if found is None:
        return None
    address, name, port = found.groups()
    if port is not None and not 0 < int(port) <= _MAX_PORT:
        return None
    return name if address is None else _short_ipv6(address)


def _short_ipv6(text: str) -> str | None:
    if ":" not in text:
        return None
    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError:
        return None


def is_loopback(name: str) -> bool:
    """Return whether a host name or an address means this machine only."""
    if name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


class Hosts:
    """Knows the names that the server answers to.

    Any other is refused: a page whose name is led to this machine (DNS rebinding) sends its own.
    """

    def __init__(self, server: Server) -> None:
        names = [normal_name(name) for name in server.allowed_hosts]
        self._all = "*" in names
        self._domains = tuple(name for name in names if name.startswith("."))
        own = ["localhost", "127.0.0.1", "::1"]
        own += _names_of_this_machine() if server.host in _WILDCARDS else [server.host]
        if server.public_url is not None:
            own.append(urlsplit(server.public_url).hostname or "")
        self._names = frozenset(names) | {normal_name(name) for name in own if name}

    def accept(self, name: str, local: str | None) -> bool:
        """Return whether the server answers to a name; ``local`` is the address that was called."""
        if name in self._names or self._all or (name == local and name not in _WILDCARDS):
            return True
        return any(name.endswith(each) or name == each[1:] for each in self._domains)


def _names_of_this_machine() -> list[str]:
    """Return the machine's name as others on its network call it: plain, whole, and by mDNS."""
    whole = socket.gethostname()
    plain = whole.partition(".")[0]
    return [whole, plain, f"{plain}.local"]


class Origins:
    """Knows the web origins whose pages may use the server: its own, and those in the settings."""

    def __init__(self, allowed: Collection[str]) -> None:
        self._all = "*" in allowed
        self._allowed = frozenset(allowed)

    def accept(self, origin: str | None, host: str, *, other_site: bool) -> bool:
        """Return whether a page may use the server that it calls ``host``.

        ``origin`` is None if the browser does not tell it; ``other_site``: the browser says that
        the page is not of the server's own origin.
        """
        if self._all or origin in self._allowed:
            return True
        if other_site:
            return False
        return origin is None or _is_own(origin, host)


def _is_own(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()
