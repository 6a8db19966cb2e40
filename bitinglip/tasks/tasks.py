"""Tasks are found by id: every job while it is in memory, asynchronous ones in the database too.

An asynchronous task is in the database before its client learns of it, and so is its end.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import ExitStack
from typing import Any

import msgspec
import structlog

from bitinglip import errors
from bitinglip.scheduling.dispatch.dispatcher import Dispatcher
from bitinglip.scheduling.event_log import EventLog, error_of, failed_with
from bitinglip.scheduling.job import Claim, Job
from bitinglip.tasks.store import Filter, Task, TaskStore
from model_store.errors import StoreError
from workers import protocol

log = structlog.get_logger(__name__)

_RETRY_SECONDS = 1.0
_CLOSE_SECONDS = 5.0  #: for the ends that are known and not written yet
_WAITING = ("queued", "loading")

#: writes what an ended job leaves behind: its owner may ask for it
Finish = Callable[[EventLog], Awaitable[None]]
#: removes what a client sent with a job that is over
DiscardUploads = Callable[[Job], None]


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


class Tasks:
    """Accepts asynchronous tasks, and finds all tasks by id."""

    def __init__(
        self,
        rows: TaskStore,
        dispatcher: Dispatcher,
        *,
        finish: Finish,
        discard_uploads: DiscardUploads,
        retention: float,
    ) -> None:
        self._dispatcher = dispatcher
        self._retention = retention
        self._finish_work = finish
        self._discard_uploads = discard_uploads
        self._rows = rows
        self._open: dict[str, AsyncTask] = {}
        self._resumed = asyncio.Event()
        self._suspended = False

    # ---- what the API asks -----------------------------------------------------------------------

    async def accept(self, job: Job) -> Task:
        """Accept a job: it is in the queue and in the database when this returns.

        Raises what ``Dispatcher.open`` raises, or DiskFull; then there is no such task.
        """
        job = msgspec.structs.replace(job, asynchronous=True)
        open_task = AsyncTask(job)
        with ExitStack() as admission:
            admission.callback(self._discard_uploads, job)
            opened = admission.enter_context(ExitStack())
            held = await self._dispatcher.reserve(job)
            open_task.event_log = opened.enter_context(self._dispatcher.open(job, held=held))
            await self._rows.add(job)
            open_task.admission = opened.pop_all()
            admission.pop_all()
        open_task.queued.set()
        self._open[job.id] = open_task
        self._start(open_task, self._follow(open_task))
        if self._suspended:
            self._defer(open_task)
        return _describe_open(open_task)

    async def get(self, task_id: str) -> Task:
        """Return a task by its id. Raises TaskNotFound."""
        if open_task := self._open.get(task_id):
            return _describe_open(open_task)
        event_log = self._dispatcher.find(task_id)
        if event_log is not None and not self._expired(event_log):
            return _describe_log(event_log)
        if task := await self._rows.get(task_id):
            return task
        raise errors.TaskNotFound()

    async def list(self, wanted: Filter, *, limit: int, offset: int) -> tuple[list[Task], int]:
        """Return one page, the newest first, and the number of all."""
        held = {
            event_log.job.id: _describe_log(event_log)
            for event_log in self._dispatcher.event_logs()
        }
        held |= {open_task.job.id: _describe_open(open_task) for open_task in self._open.values()}
        live = [
            task
            for task in held.values()
            if wanted.matches(task)
            and not (task.event_log is not None and self._expired(task.event_log))
        ]
        total = len(live) + await self._rows.count(wanted, excluding=held)
        # Each of the rows before this one comes before the page, whatever lies between them.
        first = max(0, offset - len(live))
        rows = await self._rows.page(
            wanted, excluding=held, limit=offset + limit - first, offset=first
        )
        merged = sorted(live + rows, key=lambda task: (task.created_at, task.id), reverse=True)
        return merged[offset - first : offset - first + limit], total

    async def cancel(self, task_id: str) -> Task:
        """End a task as cancelled, if it has not ended. Raises TaskNotFound."""
        open_task = self._open.get(task_id)
        if open_task is not None and open_task.event_log is None:
            _stop(open_task)
            await self._end_unqueued(open_task, protocol.Cancelled(id=task_id))
        else:
            self._dispatcher.cancel(task_id)
            await self.finished(task_id)
        return await self.get(task_id)

    def claims(self) -> set[Claim]:
        """Return what the tasks that have not ended need of their keys."""
        return {open_task.job.claim for open_task in self._open.values()}

    def cancel_of(self, claim: Claim) -> int:
        """End the tasks with this claim that have no place in a queue yet; return how many.

        The dispatcher ends the others.
        """
        open_tasks = [each for each in self._open.values() if each.job.claim == claim]
        waiting = [
            open_task
            for open_task in open_tasks
            if open_task.event_log is None and not open_task.deferred
        ]
        for open_task in waiting:
            _stop(open_task)
            self._start(
                open_task, self._end_unqueued(open_task, protocol.Cancelled(id=open_task.job.id))
            )
        return len(waiting)

    async def event_log(self, task_id: str) -> EventLog | None:
        """Return a task's event log once it is queued; None if it is no longer in memory."""
        if open_task := self._open.get(task_id):
            await open_task.queued.wait()
            return open_task.event_log
        return self._dispatcher.find(task_id)

    def is_open(self, task_id: str) -> bool:
        """Return True until a task has ended and its end is in the database."""
        if task_id in self._open:
            return True
        event_log = self._dispatcher.find(task_id)
        return event_log is not None and event_log.final is None

    async def finished(self, task_id: str) -> bool:
        """Wait until a task's end is in the database; False if it is deferred to the next start."""
        open_task = self._open.get(task_id)
        if open_task is None:
            return True
        await open_task.finished.wait()
        return not open_task.deferred

    # ---- start and stop --------------------------------------------------------------------------

    async def recover(self) -> None:
        """Requeue the tasks that the last stop left open; called before the first request."""
        for job in await self._rows.recover():
            open_task = self._open[job.id] = AsyncTask(job)
            self._start(open_task, self._requeue(open_task))

    def resume(self) -> None:
        """Let requeued tasks run, once the models are known."""
        self._resumed.set()

    def suspend(self) -> None:
        """Defer tasks that have not begun to the next start, because the server drains."""
        self._suspended = True
        for open_task in list(self._open.values()):
            self._defer(open_task)

    async def close(self) -> None:
        """Write the ends that are known; the next start finds the other tasks."""
        self.suspend()
        open_tasks = [open_task for open_task in self._open.values() if not open_task.deferred]
        runners = [
            open_task.runner
            for open_task in open_tasks
            if open_task.runner is not None and _has_ended(open_task)
        ]
        if runners:
            await asyncio.wait(runners, timeout=_CLOSE_SECONDS)
        for open_task in open_tasks:
            _stop(open_task)
        await asyncio.gather(
            *(open_task.runner for open_task in open_tasks if open_task.runner),
            return_exceptions=True,
        )

    @property
    def cleanup_interval(self) -> float:
        """Return the seconds between two calls of ``clean``."""
        return min(60.0, self._retention / 2)

    async def clean(self) -> None:
        """Remove expired tasks. Raises DiskFull or DatabaseUnavailable."""
        await self._rows.expire()

    # ---- one task --------------------------------------------------------------------------------

    def _start(self, open_task: AsyncTask, work: Coroutine[Any, Any, None]) -> None:
        open_task.runner = asyncio.create_task(work, name=open_task.job.id)
        open_task.runner.add_done_callback(_log_lost)

    async def _requeue(self, open_task: AsyncTask) -> None:
        """Queue a task of the server's last run as soon as the queue has room."""
        await self._resumed.wait()
        while open_task.event_log is None:
            try:
                open_task.event_log = open_task.admission.enter_context(
                    self._dispatcher.open(open_task.job, admitted=True)
                )
            except errors.QueueFull:
                await asyncio.sleep(_RETRY_SECONDS)
            except errors.ShuttingDown:
                return  # suspend() comes, or has come
            except errors.BitingLipError as error:
                await self._end_unqueued(open_task, failed_with(open_task.job.id, error))
                return
            except StoreError as error:
                ours = errors.from_code(error.code, error.message)
                await self._end_unqueued(open_task, failed_with(open_task.job.id, ours))
                return
        open_task.queued.set()
        await self._follow(open_task)

    async def _follow(self, open_task: AsyncTask) -> None:
        event_log = open_task.event_log
        assert event_log is not None
        with open_task.admission:
            await event_log.started()
            if event_log.final is None:
                await self._retry_write(lambda: self._rows.begin(open_task.job))
                open_task.state = "running"
            await event_log.end()
            await self._finish(open_task, event_log)

    async def _end_unqueued(self, open_task: AsyncTask, final: protocol.Final) -> None:
        open_task.event_log = EventLog(open_task.job)
        open_task.event_log.put(final)
        await self._finish(open_task, open_task.event_log)
        open_task.queued.set()

    async def _finish(self, open_task: AsyncTask, event_log: EventLog) -> None:
        try:
            await self._retry_write(lambda: self._finish_work(event_log))
            await self._retry_write(lambda: self._rows.end(event_log))
        except Exception:  # whatever the fault, a client waits for this task's end
            log.exception("a task's answer could not be written", task=open_task.job.id)
            await self._retry_write(lambda: self._rows.end(_unwritable(open_task.job)))
        self._dispatcher.record(open_task.job.id)
        del self._open[open_task.job.id]
        self._discard_uploads(open_task.job)
        open_task.finished.set()

    def _defer(self, open_task: AsyncTask) -> None:
        if open_task.deferred or open_task.state != "queued":
            return
        if open_task.event_log is not None and open_task.event_log.status not in _WAITING:
            return
        open_task.deferred = True
        _stop(open_task)
        open_task.admission.close()
        open_task.queued.set()
        open_task.finished.set()

    async def _retry_write(self, write: Callable[[], Awaitable[None]]) -> None:
        """Write until it succeeds: a full disk delays what clients learn, it loses nothing."""
        while True:
            try:
                return await write()
            except (errors.DiskFull, errors.DatabaseUnavailable):  # the database says so, once
                await asyncio.sleep(_RETRY_SECONDS)

    def _expired(self, event_log: EventLog) -> bool:
        return event_log.ended is not None and time.monotonic() - event_log.ended > self._retention


def _unwritable(job: Job) -> EventLog:
    """Return the end of a task whose own end cannot be described."""
    event_log = EventLog(job)
    event_log.put(failed_with(job.id, errors.InternalError()))
    return event_log


def _has_ended(open_task: AsyncTask) -> bool:
    return open_task.event_log is not None and open_task.event_log.final is not None


def _stop(open_task: AsyncTask) -> None:
    if open_task.runner is not None:
        open_task.runner.cancel()


def _log_lost(work: "asyncio.Task[None]") -> None:
    if not work.cancelled() and (error := work.exception()):
        log.critical("a task is lost until the next start", task=work.get_name(), exc_info=error)


def _describe_open(open_task: AsyncTask) -> Task:
    job, event_log = open_task.job, open_task.event_log
    if open_task.deferred or _has_ended(open_task):
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


def _describe_log(event_log: EventLog) -> Task:
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
