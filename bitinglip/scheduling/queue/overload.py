"""Overload is one smoothed number, and the limits shrink with it. Pure."""

from dataclasses import dataclass

_LAG_LIMIT = 0.25  #: seconds by which the event loop may be late
_SMOOTHING = 0.3
#: of the load that changes rates by the minute and hour: half of it is seen after some 17 seconds
_SLOW_SMOOTHING = 0.02
_EASY = 0.5  #: below this nothing is taken back
SHED_BATCH = 0.8  #: from here on work of low priority is refused


@dataclass(frozen=True, slots=True)
class Pressure:
    """Measures the load; each part is from 0 (none) to 1 (all there is) or beyond."""

    lag_seconds: float = 0.0
    wait: float = 0.0  #: the longest wait in a queue, in parts of what is bearable
    fill: float = 0.0  #: the fullest queue, in parts of its bound
    memory: float = 0.0  #: missing memory for models with waiting requests, in parts of all

    @property
    def worst(self) -> float:
        return max(self.lag_seconds / _LAG_LIMIT, self.wait, self.fill, self.memory)


class OverloadController:
    """Smooths the load: 0 is idle, 1 all that the server can bear."""

    def __init__(self) -> None:
        self.value = 0.0
        self.sustained = 0.0  #: the same over a longer time

    def observe(self, pressure: Pressure) -> None:
        """Take in one measurement; called at even intervals."""
        worst = min(pressure.worst, 2.0)
        self.value += _SMOOTHING * (worst - self.value)
        self.sustained += _SLOW_SMOOTHING * (worst - self.sustained)

    def share(self, level: int, top: int) -> float:
        """Return the part of its limits that a tier of this level keeps; ``top`` is the highest.

        A tier keeps all of it below half load; then the lowest tier gives up first and most.
        """
        return _share(self.value, level, top)

    def sustained_share(self, level: int, top: int) -> float:
        """Return the part of its rates that a tier keeps: a burst of requests changes nothing."""
        return _share(self.sustained, level, top)

    @property
    def sheds_batch(self) -> bool:
        return self.value >= SHED_BATCH


def _share(load: float, level: int, top: int) -> float:
    if load <= _EASY:
        return 1.0
    excess = min(1.0, (load - _EASY) / (1.0 - _EASY))
    below = max(0, top - level) / (top + 1)
    return 1.0 - excess * below
