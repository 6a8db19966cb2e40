"""Supervises background tasks: what fails for the machine's reasons is tried again with back-off.

A full disk, a locked database or a lack of descriptors passes; meanwhile the health check names it.
Anything else is a programming error and ends the server.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import psutil
import structlog

from bitinglip.errors import BitingLipError, DatabaseUnavailable, DiskFull
from bitinglip.telemetry.health import Health
from model_store.errors import NoSpace, StoreError, StoreUnavailable

log = structlog.get_logger(__name__)

#: what can pass by itself; TimeoutError is an OSError
RECOVERABLE = (
    OSError, DatabaseUnavailable, DiskFull, NoSpace, StoreUnavailable, psutil.Error,
)  # fmt: skip
FIRST_DELAY = 1.0  #: seconds before the first retry; each further one takes twice as long
LONGEST_DELAY = 30.0
STABLE_SECONDS = 60.0  #: a task that ran for so long has recovered

Work = Callable[[], Awaitable[None]]


class Background:
    """Runs tasks that live as long as the server. ``on_fatal`` is called once one has died of a
    bug."""

    def __init__(
        self, health: Health, on_fatal: Callable[[], None], *, first_delay: float = FIRST_DELAY
    ) -> None:
        self._health = health
        self._on_fatal = on_fatal
        self._first_delay = first_delay
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, work: Work, name: str, *, check: str) -> None:
        """Run ``work`` until it returns. ``check`` is the part of /health that it belongs to."""
        self._start(self._until_done(work, name, check), name)

    def every(self, seconds: float, work: Work, name: str, *, check: str) -> None:
        """Run ``work`` at once and then after each interval of ``seconds``."""
        self._start(self._repeat(seconds, work, name, check), name)

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, supervised: Awaitable[None], name: str) -> None:
        task = asyncio.ensure_future(supervised)
        task.set_name(name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def _until_done(self, work: Work, name: str, check: str) -> None:
        delay = self._first_delay
        while True:
            began = time.monotonic()
            stable = asyncio.get_running_loop().call_later(
                STABLE_SECONDS, self._health.recover, check, name
            )
            try:
                await work()
            except RECOVERABLE as error:
                if time.monotonic() - began > STABLE_SECONDS:
                    delay = self._first_delay
                self._failed(error, name, check)
            else:
                self._health.recover(check, name)
                return
            finally:
                stable.cancel()
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY)

    async def _repeat(self, seconds: float, work: Work, name: str, check: str) -> None:
        delay = self._first_delay
        while True:
            try:
                await work()
            except RECOVERABLE as error:
                self._failed(error, name, check)
                await asyncio.sleep(delay)
                delay = min(2 * delay, max(LONGEST_DELAY, seconds))
            else:
                self._health.recover(check, name)
                delay = self._first_delay
                await asyncio.sleep(seconds)

    def _failed(self, error: Exception, name: str, check: str) -> None:
        log.debug("background task failed", task=name, exc_info=error)
        self._health.degrade(check, name, reason(error))

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.critical("background task died", task=task.get_name(), exc_info=error)
            self._on_fatal()


def reason(error: Exception) -> str:
    """Say why something failed, without the path that an OSError holds."""
    if isinstance(error, (BitingLipError, StoreError)):
        return error.message
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
