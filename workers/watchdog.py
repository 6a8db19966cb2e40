"""Finds workers that are silent or stopped, loads that stand still, cancelled jobs that go on.

It counts its own looks, not the clock's seconds. While the gateway was stopped, suspended or
starved it did not listen, and what it did not hear is not held against a worker: after such a
pause, however long, a look counts like any other.
"""

from dataclasses import dataclass

from workers.protocol import Activity
from workers.worker import LOADING, SERVING, Worker

_LOAD_SHARE = 0.001  #: of a load, that counts as progress
_LOAD_BYTES = 1 << 20  #: that it has read, which do too: a slow disk is no fault of the load
#: The first job on a card has the driver build and load kernels, and libraries choose among them.
_FIRST_STEPS = 5
_MOST_PATIENCE = 600.0  #: seconds, with that
#: Seconds of silence for work of which workers tell: compiling, and the first use of kernels.
_ACTIVITY_SECONDS: dict[Activity, float] = {"compile": 1800.0, "warmup": 600.0}
_CANCEL_STEPS = 4  #: of the longest that an engine may take; a cancelled job ends with its step


@dataclass(frozen=True, slots=True)
class Watchdog:
    heartbeat_timeout: float  #: seconds of silence
    load_timeout: float  #: seconds without progress of a load

    @property
    def interval(self) -> float:
        """Return the seconds between two looks."""
        return min(1.0, self.heartbeat_timeout / 4)

    def tick(self, worker: Worker) -> str | None:
        """Count one interval against a worker; return why it must be ended, if it must be."""
        worker.silence += self.interval
        if worker.state in SERVING:
            allowed = self._patience(worker)
            if worker.silence > allowed:
                why = ": a signal has stopped its process" if worker.handle.is_stopped() else ""
                return f"silent for {allowed:g} s{why}"
            return self._look_at_cancelled(worker, _CANCEL_STEPS * allowed)
        if worker.state not in LOADING:
            return None
        # A load says little, and a spare nothing; but one that is stopped will never say more.
        worker.stopped = worker.stopped + self.interval if worker.handle.is_stopped() else 0.0
        if worker.stopped > self.heartbeat_timeout:
            return f"was stopped by a signal for {self.heartbeat_timeout:g} s and did not go on"
        if worker.spec is None:
            return None  # a spare waits for its model as long as it has to
        worker.waited = 0.0 if _has_progressed(worker) else worker.waited + self.interval
        allowed = self.load_timeout
        if worker.activity is not None:
            allowed = max(allowed, _ACTIVITY_SECONDS[worker.activity])
        if worker.waited > allowed:
            return f"made no progress with its load for {allowed:g} s"
        return None

    def _look_at_cancelled(self, worker: Worker, allowed: float) -> str | None:
        """Find a job that keeps its slot though it was cancelled."""
        for job_id in worker.cancelled:
            worker.cancelled[job_id] += self.interval
        if max(worker.cancelled.values(), default=0.0) > allowed:
            return f"did not end a cancelled job within {allowed:g} s"
        return None

    def _patience(self, worker: Worker) -> float:
        """Return the seconds for which a worker may be silent: some engines' steps are long, and
        the first ones on a card longer."""
        own = worker.ready.step_timeout if worker.ready else 0.0
        usual = max(self.heartbeat_timeout, own)
        if worker.activity is not None:
            return max(usual, _ACTIVITY_SECONDS[worker.activity])
        if worker.has_worked or worker.spec is None or worker.spec.device != "cuda":
            return usual
        return max(usual, min(_FIRST_STEPS * usual, _MOST_PATIENCE))


def _has_progressed(worker: Worker) -> bool:
    """Return True if a load has come on since it last had, by its word or by what it has read."""
    told, read = worker.progress, worker.handle.bytes_read() or 0
    if told - worker.seen_progress < _LOAD_SHARE and read - worker.seen_bytes < _LOAD_BYTES:
        return False
    worker.seen_progress, worker.seen_bytes = told, read
    return True
