"""Remembers the credentials that were found good, so that the next request with one is quick.

A credential is known again by its digest under a secret of this process. No text of a key is kept,
and the time of a look-up tells nothing: it depends on the digest alone, which no client can
compute, and that of a guess says nothing of how near the guess is. A wrong credential is never
remembered; it takes the long way, in constant time, each time.
"""

import secrets
from hashlib import blake2b
from typing import Generic, TypeVar

T = TypeVar("T")

MOST = 4096  #: credentials; each takes some 200 bytes
_DIGEST_BYTES = 16


class Presented(Generic[T]):
    """Holds what was found for each credential until ``forget``, the oldest leaving first."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._secret = secrets.token_bytes(32)
        self._found: dict[bytes, T] = {}

    def __len__(self) -> int:
        return len(self._found)

    def find(self, credential: str) -> T | None:
        return self._found.get(self._digest(credential))

    def remember(self, credential: str, found: T) -> None:
        if len(self._found) >= self._most:
            del self._found[next(iter(self._found))]
        self._found[self._digest(credential)] = found

    def forget(self) -> None:
        """Forget all: a secret may be another one's from now on."""
        self._found.clear()

    def _digest(self, credential: str) -> bytes:
        data = credential.encode("utf-8", "surrogatepass")
        return blake2b(data, key=self._secret, digest_size=_DIGEST_BYTES).digest()
