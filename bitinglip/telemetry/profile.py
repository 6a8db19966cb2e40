"""Samples what the threads of this process do, and adds it up by stack.

The sampler looks from a thread of its own a hundred times a second, which costs about a hundredth
of a core, and only while it runs. Stacks name modules, functions and lines; no path, no value.
"""

import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from types import FrameType
from typing import Any

INTERVAL = 0.01  #: seconds between two looks
_MOST_STACKS = 5000  #: different ones; more are added up under their thread alone
_DEEPEST = 128  #: frames of a stack, the innermost ones

Stack = tuple[str, ...]  #: from the thread's name down to the frame that runs


class Profiling(Exception):
    """Another profile is being taken."""


@dataclass(frozen=True)
class Profile:
    """Holds how often each stack was seen, and for how many seconds it was looked."""

    seconds: float
    samples: int
    stacks: dict[Stack, int]

    def folded(self) -> str:
        """Return a line for each stack: frames by semicolons, and how often, as flame graphs
        take them."""
        lines = (f"{';'.join(stack)} {count}" for stack, count in self._often())
        return "\n".join(lines) + "\n"

    def speedscope(self) -> dict[str, Any]:
        """Return what speedscope.app shows: a profile for each thread."""
        frames: dict[str, int] = {}
        threads: dict[str, dict[str, Any]] = {}
        each_sample = self.seconds / max(1, self.samples)  # more than INTERVAL on a busy machine
        for (thread, *stack), count in self._often():
            shown = threads.setdefault(thread, _empty(thread))
            shown["samples"].append([frames.setdefault(each, len(frames)) for each in stack])
            shown["weights"].append(count * each_sample)
            shown["endValue"] += count * each_sample
        return {
            "$schema": "https://www.speedscope.app/file-format-schema.json",
            "name": f"bitinglip, {self.seconds:.1f} s",
            "shared": {"frames": [{"name": name} for name in frames]},
            "profiles": list(threads.values()),
        }

    def _often(self) -> list[tuple[Stack, int]]:
        return sorted(self.stacks.items(), key=lambda each: (-each[1], each[0]))


def _empty(thread: str) -> dict[str, Any]:
    shape = {"type": "sampled", "name": thread, "unit": "seconds", "startValue": 0.0}
    return {**shape, "endValue": 0.0, "samples": [], "weights": []}


class Profiler:
    """Takes one profile at a time."""

    def __init__(self) -> None:
        self._running = threading.Lock()

    def take(self, seconds: float, stop: threading.Event) -> Profile:
        """Look for so many seconds, or until ``stop`` is set; blocks. Raises Profiling."""
        if not self._running.acquire(blocking=False):
            raise Profiling
        try:
            return _sample(seconds, stop)
        finally:
            self._running.release()


def _sample(seconds: float, stop: threading.Event) -> Profile:
    seen: Counter[Stack] = Counter()
    samples, began = 0, time.monotonic()
    own = threading.get_ident()
    while (passed := time.monotonic() - began) < seconds and not stop.wait(INTERVAL):
        names = {each.ident: each.name for each in threading.enumerate()}
        for ident, frame in sys._current_frames().items():
            if ident == own:
                continue
            stack = _stack(names.get(ident, "unnamed"), frame)
            seen[stack if stack in seen or len(seen) < _MOST_STACKS else stack[:1]] += 1
        samples += 1
    return Profile(passed, samples, dict(seen))


def _stack(thread: str, innermost: FrameType) -> Stack:
    found: list[str] = []
    frame: FrameType | None = innermost
    while frame is not None and len(found) < _DEEPEST:
        module, code = str(frame.f_globals.get("__name__", "?")), frame.f_code
        found.append(f"{module}.{code.co_qualname}:{frame.f_lineno}".replace(";", ","))
        frame = frame.f_back
    return (thread.replace(";", ","), *reversed(found))
