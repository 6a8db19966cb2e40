"""A key may be narrowed to models, by globs, and to ranges of addresses.

A glob is a name in which ``*`` stands for any text and ``?`` for one character. ``None`` in place
of globs or ranges means that nothing is narrowed.
"""

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache

from bitinglip.errors import InvalidRequest

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MOST = 64  #: globs, and ranges, of one key
_GLOB = re.compile(r"[A-Za-z0-9._/*?-]{1,128}", re.ASCII)
_MAPPED_BITS = 96  #: of an IPv6 address that holds an IPv4 one


def parse_models(globs: Iterable[str] | None) -> tuple[str, ...] | None:
    """Check globs of models. Raises InvalidRequest."""
    if globs is None:
        return None
    found = tuple(dict.fromkeys(globs))
    for number, glob in enumerate(found):
        if not _GLOB.fullmatch(glob):
            raise InvalidRequest(
                "A glob of models is up to 128 characters of a model's name, with * and ?.",
                param=f"models[{number}]",
            )
    return _bounded(found, "models")


def parse_ranges(ranges: Iterable[str] | None) -> tuple[str, ...] | None:
    """Return ranges in their plain form, such as ``10.0.0.0/8``. Raises InvalidRequest."""
    if ranges is None:
        return None
    found: dict[str, None] = {}
    for number, text in enumerate(ranges):
        try:
            found[str(_network(text))] = None
        except ValueError:
            raise InvalidRequest(
                "A range is an address or a network such as 10.0.0.0/8 or 2001:db8::/32, "
                "without bits after its prefix.",
                param=f"ip_ranges[{number}]",
            ) from None
    return _bounded(tuple(found), "ip_ranges")


def model_allowed(globs: tuple[str, ...] | None, name: str) -> bool:
    """Return whether any glob covers a model's name."""
    return globs is None or any(_covers(glob, name) for glob in globs)


def address_allowed(ranges: tuple[str, ...] | None, address: str) -> bool:
    """Return whether an address is in any of the ranges; one that is none is in no range."""
    if ranges is None:
        return True
    found = _address(address)
    return found is not None and any(found in _network(text) for text in ranges)


def models_within(asked: tuple[str, ...] | None, held: tuple[str, ...] | None) -> bool:
    """Return whether each name that ``asked`` covers is covered by ``held`` too.

    Each glob must lie within one other; what only two together would cover counts as outside.
    """
    if held is None or asked is None:
        return held is None
    return all(any(_covers(own, glob) for own in held) for glob in asked)


def ranges_within(asked: tuple[str, ...] | None, held: tuple[str, ...] | None) -> bool:
    """Return whether each range of ``asked`` lies within one of ``held``."""
    if held is None or asked is None:
        return held is None
    return all(any(_inside(_network(each), _network(own)) for own in held) for each in asked)


def _bounded(found: tuple[str, ...], param: str) -> tuple[str, ...]:
    if not 1 <= len(found) <= MOST:
        raise InvalidRequest(f"'{param}' holds 1 to {MOST} entries.", param=param)
    return found


def _covers(glob: str, text: str) -> bool:
    """Match a glob with a name, or with a glob: then a ``*`` is matched by a ``*`` only.

    The steps are at most the product of the lengths, whatever the glob.
    """
    at = place = 0
    star, resume = -1, 0
    while place < len(text):
        if at < len(glob) and glob[at] == "*":
            star, resume = at, place
            at += 1
        elif at < len(glob) and _same(glob[at], text[place]):
            at += 1
            place += 1
        elif star >= 0:
            resume += 1
            at, place = star + 1, resume
        else:
            return False
    return all(rest == "*" for rest in glob[at:])


def _same(wanted: str, given: str) -> bool:
    return wanted == given or (wanted == "?" and given != "*")


@lru_cache(maxsize=1024)
def _network(text: str) -> Network:
    """Parse a range; an IPv4 one in the form of IPv6 becomes IPv4. Raises ValueError."""
    if "%" in text:
        raise ValueError("a zone is no part of a range")
    found = ipaddress.ip_network(text)
    if isinstance(found, ipaddress.IPv6Network) and found.prefixlen >= _MAPPED_BITS:
        mapped = found.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.ip_network(f"{mapped}/{found.prefixlen - _MAPPED_BITS}")
    return found


@lru_cache(maxsize=1024)
def _address(text: str) -> Address | None:
    """Parse a peer's address, without its zone; None for one that is not an address."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def plain_address(text: str) -> str | None:
    """Return an address in its plain form, as the IPv4 one that it holds; None if it is none."""
    found = _address(text)
    return None if found is None else str(found)


def _inside(network: Network, other: Network) -> bool:
    if isinstance(network, ipaddress.IPv4Network):
        return isinstance(other, ipaddress.IPv4Network) and network.subnet_of(other)
    return isinstance(other, ipaddress.IPv6Network) and network.subnet_of(other)
