"""Finds processes that a test has started and not ended."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from tests.support.wait import eventually


def children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def started_since(before: set[psutil.Process]) -> list[str]:
    """List the commands of processes that are new, but for those of older ones.

    Servers that tests share run on, and start and end processes of their own at any time.
    """
    found = []
    for each in children() - before:
        with suppress(psutil.NoSuchProcess):
            if before.isdisjoint(each.parents()):
                found.append(f"{each.pid} {each.status()} {each.cmdline()}")
    return found


@contextmanager
def no_process_left() -> Iterator[None]:
    """Wait until what was started inside has ended. Raises AssertionError that names the rest."""
    before = children()
    yield
    with suppress(AssertionError):
        eventually(lambda: not started_since(before))
    assert started_since(before) == []
