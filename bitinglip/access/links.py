"""Signs links to files: a browser, which sends no key, may fetch a file for a while."""

import hmac
import time
from collections.abc import Callable

SIGNATURES = "links to files"  #: what the secret of these is derived for
_MOST_DIGITS = 12


class Links:
    """Signs links that hold for ``lifetime`` seconds; they outlive a restart."""

    def __init__(
        self, secret: bytes, lifetime: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._secret = secret
        self._lifetime = lifetime
        self._clock = clock

    def query(self, file_id: str) -> str:
        """Return what makes the address of a file a link; nothing where links are turned off."""
        if not self._lifetime:
            return ""
        expires = str(int(self._clock() + self._lifetime))
        return f"?expires={expires}&signature={self._sign(file_id, expires)}"

    def is_ours(self, file_id: str, expires: str, signature: str) -> bool:
        """Return whether this server signed a link, whatever its time."""
        return hmac.compare_digest(
            self._sign(file_id, expires).encode(), signature.encode("utf-8", "replace")
        )

    def is_open(self, expires: str) -> bool:
        """Return whether a link of this server holds still; none does once they are turned off."""
        plain = expires.isascii() and expires.isdigit() and len(expires) <= _MOST_DIGITS
        return bool(self._lifetime) and plain and self._clock() < int(expires)

    def _sign(self, file_id: str, expires: str) -> str:
        message = f"{file_id}\n{expires}".encode("utf-8", "replace")
        return hmac.new(self._secret, message, "sha256").hexdigest()
