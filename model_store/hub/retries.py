"""Decides after each failure whether to ask again, and when."""

import random
import threading
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Protocol

from model_store.hub.options import Rate

_TRIES = 6  #: without a single new byte
_LONGEST_PAUSE = 8.0
_LONGEST_ASKED = 300.0  #: seconds that a server may ask to wait: the hub counts in five minutes
_PASSING = {408, 425, 429, 500, 502, 503, 504}


FIRST_PAUSE, LONGEST_PAUSE = 15.0, 300.0  #: seconds between two pulls while the hub is away


def pause_before(tries: int, left: float) -> float | None:
    """Return the seconds to wait for a hub that is away, after so many pulls without a byte.

    ``left`` are the seconds for which it is still waited; None once they are over.
    """
    if left <= 0:
        return None
    return min(left, LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(tries, 16))


class Answer(Protocol):
    """Names what is looked at of an answer, whichever HTTP client it is from."""

    @property
    def status_code(self) -> int: ...

    @property
    def headers(self) -> Any: ...


class Patience:
    """Counts failures in a row; one lasts for one file, or for one question."""

    def __init__(self, stopped: threading.Event) -> None:
        self._stopped = stopped
        self._failures = 0

    def progressed(self) -> None:
        """Reset the count: something came."""
        self._failures = 0

    def failed(self) -> bool:
        """Count a failure; return whether another try makes sense."""
        self._failures += 1
        return self._failures < _TRIES

    def rest(self, answer: Answer | None = None) -> None:
        """Wait before the next try, at least as long as the answer asks for."""
        pause = min(_LONGEST_PAUSE, 0.25 * 2**self._failures) * random.uniform(0.75, 1)
        nap(self._stopped, max(pause, asked_pause(answer)))


def nap(stopped: threading.Event, seconds: float) -> None:
    """Wait, but no longer than until the work is stopped."""
    stopped.wait(seconds)


def may_pass(status: int) -> bool:
    """Return whether a server that answers with this status may answer otherwise soon."""
    return status in _PASSING


def asked_pause(answer: Answer | None) -> float:
    """Return the seconds that an answer asks to wait: Retry-After, or the hub's own RateLimit."""
    if answer is None:
        return 0.0
    value = answer.headers.get("retry-after", "").strip()
    if not value and answer.status_code == HTTPStatus.TOO_MANY_REQUESTS:
        # As in the IETF's draft: a name, then the quota that is left, then the seconds (t=55).
        parts = answer.headers.get("ratelimit", "").split(";")
        value = next((part.strip()[2:] for part in parts if part.strip().startswith("t=")), "")
    if value.isascii() and value.isdigit():
        return min(_LONGEST_ASKED, float(value[:9]))
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return min(_LONGEST_ASKED, max(0.0, (until - datetime.now(UTC)).total_seconds()))


class Throttle:
    """Spreads the bytes of several threads over time, so that they stay below a rate."""

    _BURST_SECONDS = 0.1
    _SLICE_SECONDS = 0.25  #: of waiting, after which the rate may be another

    def __init__(self, bytes_per_second: int | Rate | None, stopped: threading.Event) -> None:
        if not isinstance(bytes_per_second, Rate):
            bytes_per_second = Rate(bytes_per_second)
        self._rate = bytes_per_second
        self._stopped = stopped
        self._lock = threading.Lock()
        self._due = 0.0

    def take(self, count: int) -> None:
        """Wait until so many bytes may be taken."""
        while count > 0 and (rate := self._rate.bytes_per_second) and not self._stopped.is_set():
            part = min(count, max(1, int(rate * self._SLICE_SECONDS)))
            count -= part
            with self._lock:
                now = time.monotonic()
                self._due = max(self._due, now - self._BURST_SECONDS) + part / rate
                pause = self._due - now
            if pause > 0:
                nap(self._stopped, pause)
