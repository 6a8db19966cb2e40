"""Heap trims: freed memory goes back to the system, seldom and when it is due."""

import ctypes

import pytest

from workers.heap import HeapTrim

LIBC = ctypes.CDLL(None)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("idle", "seconds"), [(True, 60), (False, 600)])
def test_heap_is_trimmed_after_work_once_a_minute_or_seldom_while_busy(
    idle: bool, seconds: int
) -> None:
    clock, trimmed = Clock(), []
    heap = HeapTrim(lambda: trimmed.append(clock.now), clock)
    for second in range(1, 3 * seconds + 1):
        clock.now = second
        heap.tick(worked=True, idle=idle)
    assert trimmed == [seconds, 2 * seconds, 3 * seconds]


def test_heap_of_a_worker_that_does_nothing_is_left_alone() -> None:
    clock, trimmed = Clock(), []
    heap = HeapTrim(lambda: trimmed.append(clock.now), clock)
    heap.tick(worked=True, idle=False)
    for second in range(1000):
        clock.now = second
        heap.tick(worked=False, idle=True)
    assert trimmed == [60]


@pytest.mark.skipif(not hasattr(LIBC, "malloc_trim"), reason="not glibc")
def test_heap_trim_gives_memory_back() -> None:
    """Small pieces below one that is still held stay with the process until then."""
    malloc, free = LIBC.malloc, LIBC.free
    malloc.restype, free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    pieces = [malloc(100_000) for _ in range(2000)]
    for piece in pieces:
        ctypes.memset(piece, 1, 100_000)
    for piece in pieces[:-1]:
        free(piece)
    before = _resident()
    clock = Clock()
    heap = HeapTrim(clock=clock)
    clock.now = 100
    heap.tick(worked=True, idle=True)
    assert _resident() < before - 100_000_000
    free(pieces[-1])


def _resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096
