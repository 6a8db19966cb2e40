"""Declares the types of settings that name machines and web pages; invalid ones are refused at
start."""

import ipaddress
import re
from typing import Annotated

from pydantic import AfterValidator

_ORIGIN = re.compile(r"https?://(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?", re.ASCII)
_HOST = re.compile(r"\[?[0-9a-f:]*:[0-9a-f:.]*\]?|\.?[a-z0-9_-][a-z0-9._-]{0,252}", re.ASCII)
_PATH = re.compile(r"(?:/[A-Za-z0-9._~-]+)*", re.ASCII)


def _range(text: str) -> str:
    """Return an address or a network as it is. Raises ValueError."""
    try:
        ipaddress.ip_network(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is no address and no network such as 10.0.0.0/8 or 2001:db8::/32"
        ) from None
    return text


def _proxy(text: str) -> str:
    if ipaddress.ip_network(_range(text)).prefixlen == 0:
        raise ValueError(f"{text!r} trusts all clients to say where requests come from")
    return text


def _origin(text: str) -> str:
    if text != "*" and not _ORIGIN.fullmatch(text.lower()):
        raise ValueError(
            f"{text!r} is no origin such as https://app.example (without a path), or *"
        )
    return text


def _host(text: str) -> str:
    if text != "*" and not _HOST.fullmatch(text.strip().lower()):
        raise ValueError(
            f"{text!r} is no name such as box.lan, no address, no .example.com (a domain and all "
            "below it) and not * (every name); schemes, ports and paths do not belong here"
        )
    return text


def _url(text: str) -> str:
    text = text.removesuffix("/")
    origin = _ORIGIN.match(text.lower())
    if origin is None or not _PATH.fullmatch(text[origin.end() :]):
        raise ValueError(f"{text!r} is no URL such as https://ai.example or https://example/ai")
    return text


AddressRange = Annotated[str, AfterValidator(_range)]
Proxy = Annotated[str, AfterValidator(_proxy)]
Origin = Annotated[str, AfterValidator(_origin)]
HostName = Annotated[str, AfterValidator(_host)]
PublicUrl = Annotated[str, AfterValidator(_url)]
