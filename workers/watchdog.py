"""Finds workers that have gone silent, loads that take too long, and cancelled jobs that go on.

It counts its own looks, not the clock's seconds. While the gateway was stopped, suspended or
starved it did not listen, and what it did not hear is not held against a worker: after such a
pause, however long, a look counts like any other.
"""

from dataclasses import dataclass

from workers.worker import LOADING, SERVING, Worker

_CANCEL_STEPS = 4  #: of the longest that an engine may take; a cancelled job ends with its step


@dataclass(frozen=True, slots=True)
class Watchdog:
    heartbeat_timeout: float  #: seconds of silence
    load_timeout: float  #: seconds

    @property
    def interval(self) -> float:
        """Seconds between two looks."""
        return min(1.0, self.heartbeat_timeout / 4)

    def look(self, worker: Worker) -> str | None:
        """Count one interval against a worker; return why it must be ended, if it must be."""
        worker.silence += self.interval
        if worker.state in SERVING:
            allowed = self._step_timeout(worker)
            if worker.silence > allowed:
                return f"silent for {allowed:g} s"
            return self._look_at_cancelled(worker, _CANCEL_STEPS * allowed)
        if worker.spec is None or worker.state not in LOADING:
            return None  # a spare waits for its model as long as it has to
        worker.waited += self.interval
        if worker.waited > self.load_timeout:
            return f"did not load within {self.load_timeout:g} s"
        return None

    def _look_at_cancelled(self, worker: Worker, allowed: float) -> str | None:
        """Find a job that keeps its slot though nobody wants it any more."""
        for job_id in worker.cancelled:
            worker.cancelled[job_id] += self.interval
        if max(worker.cancelled.values(), default=0.0) > allowed:
            return f"did not end a cancelled job within {allowed:g} s"
        return None

    def _step_timeout(self, worker: Worker) -> float:
        """Seconds for which a worker may be silent: some engines' steps are long."""
        own = worker.ready.step_timeout if worker.ready else 0.0
        return max(self.heartbeat_timeout, own)
