"""The service time of a model is the smoothed duration of its jobs, from which ETAs follow."""

_SMOOTHING = 0.2


class ServiceTime:
    """Averages the seconds of one job on one slot. Pure: times are the caller's."""

    def __init__(self) -> None:
        self._seconds: float | None = None

    def ended(self, seconds: float) -> None:
        """Learn the duration of a job, in seconds."""
        if self._seconds is None:
            self._seconds = seconds
        else:
            self._seconds += _SMOOTHING * (seconds - self._seconds)

    def wait(self, ahead: int, slots: int) -> float | None:
        """Estimate the seconds until a job with so many before it begins; None at first.

        With all slots busy, one comes free every ``seconds / slots``.
        """
        if self._seconds is None or slots < 1:
            return None
        return self._seconds * (ahead + 1) / slots
