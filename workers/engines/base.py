"""Defines the engine, the one interface between the worker's loop and a model."""

import re
from collections.abc import Callable
from typing import Any, Protocol

from workers.codes import Code
from workers.faults import FaultName
from workers.protocol import Event, Failed, Job, Load, Ready, Success, TextChoice, TextDone, TextJob
from workers.protocol.bounds import MOST_MESSAGE

_FOLDERS = re.compile(r"(?<![\w.])/(?:[^\s/'\"]+/)+")


class Refused(Exception):
    """The engine will not run this job, or cannot load this model; the client is told why."""

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        param: str | None = None,
        details: dict[str, Any] | None = None,
        fault: FaultName | None = None,
    ) -> None:
        """``fault``: the class of what kept a model from being loaded, if it has one."""
        super().__init__(message)
        self.code = code
        self.message = message[:MOST_MESSAGE]
        self.param = param
        self.details = details or {}
        self.fault = fault

    def final(self, job_id: str) -> Failed:
        """Return the final event of the job that is refused."""
        return Failed(
            id=job_id,
            code=self.code,
            message=self.message,
            param=self.param,
            details=self.details,
        )


def reason(error: BaseException) -> str:
    """Return the first line of a library's error, without the folders of its paths."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return _FOLDERS.sub("", line)[:300]


class Answered(Exception):
    """The job is answered by what was found out before any step."""

    def __init__(self, final: Success) -> None:
        super().__init__()
        self.final = final


def counted(job: TextJob, tokens: int) -> Answered:
    """Return the answer to a job that only asks how many tokens its prompt has."""
    nothing = TextChoice(text="", finish_reason="stop")
    done = TextDone(id=job.id, choices=(nothing,), prompt_tokens=tokens, completion_tokens=0)
    return Answered(done)


class Engine(Protocol):
    """Runs jobs of one model, many at a time, one step after another.

    ``prepare`` is called by the worker's intake thread; everything else by its loop's thread.
    Each job that was submitted ends in exactly one final event of some step.
    """

    def load(self, spec: Load, progress: Callable[[float], None]) -> Ready:
        """Load the model and warm it up.

        Raises :class:`Refused` with MODEL_LOAD_FAILED or OUT_OF_MEMORY.
        """
        ...

    def prepare(self, job: Job) -> Any:
        """Check and tokenise a job, off the loop's thread. Raises :class:`Refused`.

        Raises :class:`Answered` for a job that needs no step.
        """
        ...

    def submit(self, prepared: Any) -> None:
        """Take a prepared job into the next step."""
        ...

    def cancel(self, job_id: str) -> None:
        """End a job at the next step with Cancelled; unknown ids are ignored."""
        ...

    def step(self) -> list[Event]:
        """Compute a step of the running jobs; returns the events of all of them."""
        ...

    @property
    def in_flight(self) -> int:
        """Count the jobs that have not ended; the loop sleeps while it is 0."""
        ...

    def device_bytes(self) -> int | None:
        """Return the bytes of its device's memory that it holds, the highest since the last call.

        None if that is the process's own memory, as on a CPU.
        """
        ...

    def books(self) -> dict[str, int]:
        """Count what is held for running jobs (rows, blocks): all zero when nothing runs."""
        ...

    def close(self) -> None: ...
