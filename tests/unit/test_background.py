"""Supervised background tasks: the machine's failures pass, bugs are fatal."""

import asyncio
import errno
from collections.abc import Awaitable, Callable

import psutil
import pytest

from bitinglip.background import Background
from bitinglip.errors import DatabaseUnavailable, DiskFull
from bitinglip.telemetry.health import Health

PASSING = [
    OSError(errno.EMFILE, "Too many open files", "/proc/meminfo"),
    DatabaseUnavailable("The database is locked by another program; try again later."),
    DiskFull(),
    TimeoutError(),
    psutil.AccessDenied(),
]


class Failing:
    """Holds work that fails so many times before it succeeds."""

    def __init__(self, error: Exception, times: int) -> None:
        self._error = error
        self.left = times
        self.succeeded = asyncio.Event()
        self.fatal = asyncio.Event()  #: the supervisor said so
        self.problems: list[dict[str, str]] = []
        self.health: Health

    async def __call__(self) -> None:
        self.problems.append(dict(self.health.problems()))
        if self.left:
            self.left -= 1
            raise self._error
        self.succeeded.set()


def supervised(
    act: Callable[[Background, Failing], Awaitable[None]], error: Exception, times: int = 3
) -> Failing:
    """Run ``act`` on a supervisor, and return the work that failed."""

    async def run() -> Failing:
        health, work = Health(), Failing(error, times)
        work.health = health
        background = Background(health, work.fatal.set, first_delay=0.001)
        try:
            async with asyncio.timeout(60):
                await act(background, work)
        finally:
            await background.close()
        return work

    return asyncio.run(run())


@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
def test_background_task_is_tried_again_until_it_succeeds(error: Exception) -> None:
    async def act(background: Background, work: Failing) -> None:
        background.run(work, "write", check="database")
        await work.succeeded.wait()

    work = supervised(act, error)
    assert not work.fatal.is_set()
    assert work.problems[0] == {}
    for problems in work.problems[1:]:
        assert problems["database"].startswith("write: ")
        assert "/proc" not in problems["database"]  # it is public
    assert not work.health.problems()


def test_background_task_that_repeats_recovers_by_itself() -> None:
    async def act(background: Background, work: Failing) -> None:
        background.every(0.001, work, "write", check="database")
        await work.succeeded.wait()
        for _ in range(2):  # it goes on, and its problem is over
            work.succeeded.clear()
            await work.succeeded.wait()
        assert not work.health.problems()

    work = supervised(act, OSError(errno.ENOSPC, "No space left on device"))
    assert not work.fatal.is_set()


@pytest.mark.parametrize("repeated", [False, True])
def test_background_task_that_has_a_bug_is_fatal(repeated: bool) -> None:
    async def act(background: Background, work: Failing) -> None:
        if repeated:
            background.every(0.001, work, "write", check="database")
        else:
            background.run(work, "write", check="database")
        await work.fatal.wait()

    assert not supervised(act, KeyError("x"), times=1).succeeded.is_set()
