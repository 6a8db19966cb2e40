"""Keeps answers in Redis, so that all gateways answer from them.

Redis holds them encrypted and under names that tell nothing: both come from the home's secret,
which gateways that share have in common. An answer that cannot be read in time is none, nor is one
of another version, whose events may be others.
"""

import hashlib
import hmac
import os
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from redis.exceptions import RedisError

from bitinglip import __version__
from bitinglip.results.cache.entries import Answer

if TYPE_CHECKING:
    from bitinglip.redis.link import RedisLink

log = structlog.get_logger(__name__)

#: what the home's secret is derived for, to encrypt and name answers
CACHING = "cached answers"
LARGEST = 4 << 20  #: bytes of an answer; larger ones would take too long on their way
_NONCE = 12  #: bytes
_AT_ONCE = 1000  #: names that are looked for or removed in one command
#: ValueError: the library does not understand what is said
_FAULTS = (RedisError, OSError, ValueError)


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    """Is an answer as Redis has it, before it is encrypted."""

    stored: float  #: Unix time
    output: bytes
    final: bytes
    files: tuple[bytes, ...]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Kept).decode


class AnswersInRedis:
    """Reads and writes answers; this gateway's own take at most ``most`` bytes in Redis.

    ``words`` returns the digest of the list of words that answers were checked for: others are not
    answers here.
    """

    def __init__(
        self,
        link: "RedisLink",
        secret: bytes,
        *,
        ttl: float,
        most: int,
        words: Callable[[], bytes] = bytes,
        version: str = __version__,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._link = link
        self._client = link.client(connections=link.settings.pool_size)
        self._cipher = AESGCM(hmac.digest(secret, b"encrypt", "sha256"))
        self._naming = hmac.digest(secret, f"name {version}".encode(), "sha256")
        self._ttl = ttl
        self._most = most
        self._words = words
        self._clock = clock
        self._own: deque[tuple[float, int]] = deque()  #: when what was written ends, and its size
        self._bytes = 0
        self._all = f"{link.prefix}answer:*"
        self._cleared = 0.0  #: Unix time before which no answer is taken

    async def get(self, key: bytes, max_age: float | None = None) -> Answer | None:
        """Return an answer that is at most ``max_age`` seconds old; None if there is none."""
        if self._link.away is not None:
            return None
        name = self._name(key)
        try:
            found = await self._client.get(name)
        except _FAULTS as error:
            log.debug("no cached answer could be read", reason=type(error).__name__)
            self._link.check_now()
            return None
        if not isinstance(found, bytes):
            return None
        try:
            opened = self._cipher.decrypt(found[:_NONCE], found[_NONCE:], name.encode())
            kept = _decode(opened)
        except (InvalidTag, msgspec.DecodeError, ValueError):  # of another secret or version
            return None
        age = self._clock() - kept.stored
        if (
            kept.stored <= self._cleared
            or age > self._ttl
            or (max_age is not None and age > max_age)
        ):
            return None
        return Answer(kept.output, kept.final, kept.files)

    async def put(self, key: bytes, answer: Answer) -> None:
        """Keep an answer, unless it or all of them are too large."""
        now = self._clock()
        self._expire(now)
        size = answer.size
        if self._link.away is not None or size > LARGEST or self._bytes + size > self._most:
            return
        name, nonce = self._name(key), os.urandom(_NONCE)
        kept = _encode(_Kept(now, answer.output, answer.final, answer.files))
        sealed = nonce + self._cipher.encrypt(nonce, kept, name.encode())
        try:
            await self._client.set(name, sealed, px=max(1, int(self._ttl * 1000)))
        except _FAULTS as error:
            log.debug("an answer could not be cached for others", reason=type(error).__name__)
            self._link.check_now()
            return
        self._own.append((now + self._ttl, size))
        self._bytes += size

    def refuse_older(self) -> None:
        """Take no answer any more that was kept before now."""
        self._cleared = self._clock()

    async def forget(self) -> None:
        """Have no gateway answer from what is kept now: names tell nothing, so it is all of it.

        What Redis cannot remove now, this gateway does not take.
        """
        self.refuse_older()
        try:
            names = [each async for each in self._client.scan_iter(self._all, count=_AT_ONCE)]
            for start in range(0, len(names), _AT_ONCE):
                await self._client.unlink(*names[start : start + _AT_ONCE])
        except _FAULTS as error:
            log.warning("cached answers are in Redis still", reason=type(error).__name__)
            self._link.check_now()

    async def close(self) -> None:
        await self._client.aclose(close_connection_pool=True)

    def _name(self, key: bytes) -> str:
        digest = hmac.digest(self._naming, key + self._words(), hashlib.sha256).hex()
        return f"{self._link.prefix}answer:{digest}"

    def _expire(self, now: float) -> None:
        while self._own and self._own[0][0] <= now:
            self._bytes -= self._own.popleft()[1]
