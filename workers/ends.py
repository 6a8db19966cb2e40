"""Says in words how a worker ended."""

import signal

from workers.faults import RAM, Fault
from workers.launcher import told_end
from workers.oom_kills import OomKills
from workers.worker import Worker


def note_end(worker: Worker, code: int | None, oom_kills: OomKills) -> None:
    """Note why a worker has ended that was not told to, from its exit code if nothing else says."""
    told = told_end(worker.handle)
    if told is not None:  # its node's kernel counts, not this one's
        if worker.cause is None:
            worker.fault, worker.cause = told.fault or worker.fault, told.cause
        worker.cause = worker.cause or describe_exit(code)
        return
    if worker.cause is None and code == -signal.SIGKILL and oom_kills.have_risen():
        worker.fault, worker.cause = RAM, RAM.cause
    worker.cause = worker.cause or describe_exit(code)


def describe_exit(code: int | None) -> str:
    """Say in words how a process ended; negative codes are signals."""
    if code is not None and code < 0:
        return f"was ended by signal {-code}"
    return f"exited with code {code}"


def cause_of(fault: Fault | None, error: str) -> str:
    """Return what a worker did that an error of this type has ended, as in "The worker ..."."""
    return f"{fault.cause if fault else 'failed'} ({error})"


def explain(fault: Fault | None, error: str) -> str:
    """Return what the operator should know of the error that ended a worker."""
    if fault is None:
        return f"an error of the type {error} has ended it"
    return f"an error of the class '{fault.name}' ({error}) has ended it. {fault.sentence}"
