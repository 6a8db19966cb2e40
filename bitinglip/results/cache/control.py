"""Reads what a request's ``Cache-Control`` asks of the response cache. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheControl:
    """Tells whether an answer may come from the cache, how old it may be, and whether it fills it.

    A request that may not be stored is answered without the cache.
    """

    store: bool = True
    read: bool = True
    max_age: float | None = None  #: seconds


ANY = CacheControl()


def cache_control(headers: Iterable[tuple[bytes, bytes]]) -> CacheControl:
    """Read a request's headers; directives that are unknown or malformed have no effect."""
    given = [value for name, value in headers if name == b"cache-control"]
    if not given:
        return ANY
    asked = [each.strip().lower() for each in b",".join(given).decode("latin-1").split(",")]
    ages = [each.partition("=")[2].strip('"') for each in asked if each.startswith("max-age=")]
    seconds = [min(float(age), 1e9) for age in ages if age.isascii() and age.isdigit()]
    return CacheControl(
        store="no-store" not in asked,
        read="no-cache" not in asked,
        max_age=min(seconds, default=None),
    )
