"""Holds the jobs that an engine runs, and those of them to cancel at the next step."""

from collections.abc import Callable
from typing import TypeVar

from workers.protocol import Event

Request = TypeVar("Request")


class JobTable(dict[str, Request]):
    """Holds requests by the ids of their jobs, from their submission to their final event."""

    def __init__(self) -> None:
        super().__init__()
        self._cancelled: list[str] = []

    def cancel(self, job_id: str) -> None:
        """Note that a job is to end at the next step; an id that is not here is ignored."""
        if job_id in self:
            self._cancelled.append(job_id)

    @property
    def cancelling(self) -> bool:
        """True if a job that was here is to end at the next step."""
        return bool(self._cancelled)

    def end_cancelled(self, end: Callable[[Request], Event]) -> list[Event]:
        """End the cancelled jobs that still run, each once; ``end`` removes one from the table."""
        job_ids, self._cancelled = dict.fromkeys(self._cancelled), []
        return [end(self[job_id]) for job_id in job_ids if job_id in self]
