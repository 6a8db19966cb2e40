"""Tracks one asynchronous task in memory, and describes tasks as clients see them."""

import asyncio
from contextlib import ExitStack

import structlog

from bitinglip import errors
from bitinglip.scheduling.event_log import EventLog, error_of, failed_with
from bitinglip.scheduling.job import Job
from bitinglip.tasks.store import Task
from workers import protocol

log = structlog.get_logger(__name__)

WAITING = ("queued", "loading")


class AsyncTask:
    """Tracks one asynchronous task, from its acceptance until its end is in the database."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.state = "queued"  #: as in its row
        self.event_log: EventLog | None = None  #: None until it has a place in the queue
        self.admission = ExitStack()  #: what it holds in the dispatcher
        self.runner: asyncio.Task[None] | None = None
        self.queued = asyncio.Event()
        self.finished = asyncio.Event()
        self.deferred = False  #: it waits in the database for the next start

    @property
    def status(self) -> str:
        """Return the state; never a final one, which is shown once it is in the database."""
        if self.deferred or self.event_log is None:
            return "queued"
        return self.state if self.event_log.final is not None else self.event_log.status


def unwritable(job: Job) -> EventLog:
    """Return the end of a task whose own end cannot be described."""
    event_log = EventLog(job)
    event_log.put(failed_with(job.id, errors.InternalError()))
    return event_log


def has_ended(open_task: AsyncTask) -> bool:
    return open_task.event_log is not None and open_task.event_log.final is not None


def stop(open_task: AsyncTask) -> None:
    if open_task.runner is not None:
        open_task.runner.cancel()


def log_lost(work: "asyncio.Task[None]") -> None:
    if not work.cancelled() and (error := work.exception()):
        log.critical("a task is lost until the next start", task=work.get_name(), exc_info=error)


def describe_open(open_task: AsyncTask) -> Task:
    job, event_log = open_task.job, open_task.event_log
    if open_task.deferred or has_ended(open_task):
        event_log = None
    return Task(
        id=job.id,
        key_id=job.key_id,
        kind=job.kind,
        model=job.model,
        status=open_task.status,
        created_at=job.created_at,
        event_log=event_log,
    )


def describe_log(event_log: EventLog) -> Task:
    job, final = event_log.job, event_log.final
    return Task(
        id=job.id,
        key_id=job.key_id,
        kind=job.kind,
        model=job.model,
        status=event_log.status,
        created_at=job.created_at,
        completed_at=event_log.completed_at,
        event_log=event_log,
        error=error_of(final) if isinstance(final, protocol.Failed) else None,
    )
