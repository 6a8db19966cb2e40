"""An API key looks like ``blk_live_<12 public id>_<43 secret><6 checksum>``, all base62.

It holds 256 bits of secret, a public id to look it up by, and a checksum that refuses typos before
any lookup.
"""

import hmac
import re
import secrets
import string
import zlib
from typing import NamedTuple

from bitinglip.telemetry.redaction import KEY_SHAPE

PATTERN = re.compile(KEY_SHAPE, re.ASCII)
LENGTH = 71

_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_PREFIX = "blk_live_"
_ID, _SECRET, _CHECKSUM = 12, 43, 6


class Credential(NamedTuple):
    """Names what a caller sent: one of the secrets of a key, or a token that it made."""

    key_id: str
    generation: int = 0  #: of the secret; 0 stands for any, where that is not known
    token: str = ""  #: the token's id


class NewCredential(NamedTuple):
    """Holds a key that was just made; its text exists here and is never stored."""

    id: str
    text: str


def make(public: str | None = None) -> NewCredential:
    """Make a key, or another secret for the key with this public id."""
    public = public or _random(_ID)
    body = f"{_PREFIX}{public}_{_random(_SECRET)}"
    return NewCredential(public, body + _checksum(body))


def parse(text: str) -> str | None:
    """Return the public id of a well-formed key, else None; it takes about a microsecond."""
    if len(text) != LENGTH or (match := PATTERN.fullmatch(text)) is None:
        return None
    body, checksum = text[:-_CHECKSUM], text[-_CHECKSUM:]
    return match[1] if hmac.compare_digest(checksum, _checksum(body)) else None


def digest(pepper: bytes, text: str) -> bytes:
    """Return what is stored of a key. The secret is fully random: a slow hash would add nothing."""
    return hmac.digest(pepper, text.encode("ascii"), "sha256")


def matches(pepper: bytes, text: str, one: bytes, other: bytes) -> tuple[bool, bool]:
    """Compare a key with two digests: always with both, so that the time tells nothing."""
    given = digest(pepper, text)
    return hmac.compare_digest(given, one), hmac.compare_digest(given, other)


def pepper_id(pepper: bytes) -> str:
    """Return a name for a pepper that reveals nothing about it."""
    return hmac.digest(pepper, b"pepper-id", "sha256")[:4].hex()


def _random(length: int) -> str:
    return "".join(secrets.choice(_BASE62) for _ in range(length))


def _checksum(body: str) -> str:
    number, text = zlib.crc32(body.encode("ascii")), ""
    for _ in range(_CHECKSUM):
        number, rest = divmod(number, 62)
        text = _BASE62[rest] + text
    return text
