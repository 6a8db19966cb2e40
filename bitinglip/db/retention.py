"""Decide how long rows and files are kept, by a clock that cannot jump.

Rows carry wall-clock times, and a wall clock may jump: set by hand, corrected after a boot, wrong
in a restored machine. A jump ahead must not make everything look old at once.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import structlog

log = structlog.get_logger(__name__)

#: a wall clock that gains more than this on the steady one has jumped; less is its correction
JUMP_SECONDS = 60.0


def _wall() -> float:
    return time.time()


def _steady() -> float:
    """Return seconds that never jump and, unlike ``monotonic``, count the time of a suspended
    machine."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Retention:
    """Expires what is older than ``seconds``, once so much time has really passed.

    After a jump ahead the time goes on as if there had been none, until everything from before the
    jump has lived its full time; then the new time is believed. After a jump back, things are kept
    longer by as much.
    """

    def __init__(
        self,
        seconds: float,
        wall: Callable[[], float] = _wall,
        steady: Callable[[], float] = _steady,
    ) -> None:
        self.seconds = seconds
        self._wall = wall
        self._steady = steady
        self._offset = wall() - steady()  #: from the steady clock to the time that is believed
        self._jumped_at: float | None = None

    def now(self) -> float:
        """Return the Unix time that is believed, never later than the wall clock's."""
        wall, steady = self._wall(), self._steady()
        ahead = wall - steady - self._offset
        if self._jumped_at is None and ahead > JUMP_SECONDS:
            self._jumped_at = steady
            log.warning("the wall clock jumped ahead; nothing expires early", seconds=round(ahead))
        lived = self._jumped_at is not None and steady - self._jumped_at > self.seconds
        if ahead <= JUMP_SECONDS or lived:
            self._offset, self._jumped_at = wall - steady, None
            return wall
        return steady + self._offset

    def oldest(self) -> datetime:
        """Return the moment before which everything has expired."""
        return datetime.fromtimestamp(self.now(), UTC) - timedelta(seconds=self.seconds)
