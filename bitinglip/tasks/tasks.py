"""Tasks are found by id: every job while it is in memory, asynchronous ones in the database too.

An asynchronous task is in the database before its client learns of it, and so is its end.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import ExitStack
from typing import Any

import structlog

from bitinglip import errors
from bitinglip.scheduling.dispatch.dispatcher import Dispatcher
from bitinglip.scheduling.event_log import EventLog, error_of, failed_with
from bitinglip.scheduling.job import Job
from bitinglip.tasks.store import Filter, Task, TaskStore
from model_store.errors import StoreError
from workers import protocol

log = structlog.get_logger(__name__)

_RETRY_SECONDS = 1.0
_CLOSE_SECONDS = 5.0  #: for the ends that are known and not written yet
_WAITING = ("queued", "loading")

#: lets the owner of an ended job fetch its files
RegisterFiles = Callable[[EventLog], Awaitable[None]]
#: removes what a client sent with a job that is over
DiscardUploads = Callable[[Job], None]


class AsyncTask:
    """One asynchronous task, from its acceptance until its end is in the database."""

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
        register_files: RegisterFiles,
        discard_uploads: DiscardUploads,
        retention: float,
    ) -> None:
        self._dispatcher = dispatcher
        self._retention = retention
        self._register_files = register_files
        self._discard_uploads = discard_uploads
        self._rows = rows
        self._runs: dict[str, AsyncTask] = {}
        self._resumed = asyncio.Event()
        self._suspended = False

    # ---- what the API asks -----------------------------------------------------------------------

    async def accept(self, job: Job) -> Task:
        """Accept a job: it is in the queue and in the database when this returns.

        Raises what ``Dispatcher.open`` raises, or DiskFull; then there is no such task.
        """
        run = AsyncTask(job)
        with ExitStack() as admission:
            admission.callback(self._discard_uploads, job)
            opened = admission.enter_context(ExitStack())
            run.event_log = opened.enter_context(self._dispatcher.open(job))
            await self._rows.add(job)
            run.admission = opened.pop_all()
            admission.pop_all()
        run.queued.set()
        self._runs[job.id] = run
        self._start(run, self._follow(run))
        if self._suspended:
            self._defer(run)
        return _task_of_run(run)

    async def get(self, task_id: str) -> Task:
        """Return a task by its id. Raises TaskNotFound."""
        if run := self._runs.get(task_id):
            return _task_of_run(run)
        event_log = self._dispatcher.find(task_id)
        if event_log is not None and not self._expired(event_log):
            return _task_of_log(event_log)
        if task := await self._rows.get(task_id):
            return task
        raise errors.TaskNotFound()

    async def list(self, wanted: Filter, *, limit: int, offset: int) -> tuple[list[Task], int]:
        """Return one page, the newest first, and the number of all."""
        held = {
            event_log.job.id: _task_of_log(event_log) for event_log in self._dispatcher.event_logs()
        }
        held |= {run.job.id: _task_of_run(run) for run in self._runs.values()}
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
        run = self._runs.get(task_id)
        if run is not None and run.event_log is None:
            _stop(run)
            await self._end_unqueued(run, protocol.Cancelled(id=task_id))
        else:
            self._dispatcher.cancel(task_id)
            await self.finished(task_id)
        return await self.get(task_id)

    def key_ids(self) -> set[str]:
        """Return the keys whose tasks have not ended."""
        return {run.job.key_id for run in self._runs.values()}

    def cancel_key(self, key_id: str) -> int:
        """End the tasks of a key that have no place in a queue yet; return how many.

        The dispatcher ends the others.
        """
        runs = [run for run in self._runs.values() if run.job.key_id == key_id]
        waiting = [run for run in runs if run.event_log is None and not run.deferred]
        for run in waiting:
            _stop(run)
            self._start(run, self._end_unqueued(run, protocol.Cancelled(id=run.job.id)))
        return len(waiting)

    async def event_log(self, task_id: str) -> EventLog | None:
        """Return a task's event log once it is queued; None if it is no longer in memory."""
        if run := self._runs.get(task_id):
            await run.queued.wait()
            return run.event_log
        return self._dispatcher.find(task_id)

    def is_open(self, task_id: str) -> bool:
        """Return True until a task has ended and its end is in the database."""
        if task_id in self._runs:
            return True
        event_log = self._dispatcher.find(task_id)
        return event_log is not None and event_log.final is None

    async def finished(self, task_id: str) -> bool:
        """Wait until a task's end is in the database; False if it is deferred to the next start."""
        run = self._runs.get(task_id)
        if run is None:
            return True
        await run.finished.wait()
        return not run.deferred

    # ---- start and stop --------------------------------------------------------------------------

    async def recover(self) -> None:
        """Requeue the tasks that the last stop left open; called before the first request."""
        for job in await self._rows.recover():
            run = self._runs[job.id] = AsyncTask(job)
            self._start(run, self._requeue(run))

    def resume(self) -> None:
        """Let requeued tasks run, once the models are known."""
        self._resumed.set()

    def suspend(self) -> None:
        """Defer tasks that have not begun to the next start, because the server drains."""
        self._suspended = True
        for run in list(self._runs.values()):
            self._defer(run)

    async def close(self) -> None:
        """Write the ends that are known; the next start finds the other tasks."""
        self.suspend()
        runs = [run for run in self._runs.values() if not run.deferred]
        runners = [run.runner for run in runs if run.runner is not None and _has_ended(run)]
        if runners:
            await asyncio.wait(runners, timeout=_CLOSE_SECONDS)
        for run in runs:
            _stop(run)
        await asyncio.gather(*(run.runner for run in runs if run.runner), return_exceptions=True)

    @property
    def cleanup_interval(self) -> float:
        """Seconds between two calls of ``clean``."""
        return min(60.0, self._retention / 2)

    async def clean(self) -> None:
        """Remove expired tasks. Raises DiskFull or DatabaseUnavailable."""
        await self._rows.expire()

    # ---- one task --------------------------------------------------------------------------------

    def _start(self, run: AsyncTask, work: Coroutine[Any, Any, None]) -> None:
        run.runner = asyncio.create_task(work, name=run.job.id)
        run.runner.add_done_callback(_log_lost)

    async def _requeue(self, run: AsyncTask) -> None:
        """Queue a task of the server's last run as soon as the queue has room."""
        await self._resumed.wait()
        while run.event_log is None:
            try:
                run.event_log = run.admission.enter_context(self._dispatcher.open(run.job))
            except errors.QueueFull:
                await asyncio.sleep(_RETRY_SECONDS)
            except errors.ShuttingDown:
                return  # suspend() comes, or has come
            except errors.BitingLipError as error:
                await self._end_unqueued(run, failed_with(run.job, error))
                return
            except StoreError as error:
                ours = errors.from_code(error.code, error.message)
                await self._end_unqueued(run, failed_with(run.job, ours))
                return
        run.queued.set()
        await self._follow(run)

    async def _follow(self, run: AsyncTask) -> None:
        event_log = run.event_log
        assert event_log is not None
        with run.admission:
            await event_log.started()
            if event_log.final is None:
                await self._retry_write(lambda: self._rows.begin(run.job))
                run.state = "running"
            await event_log.end()
            await self._finish(run, event_log)

    async def _end_unqueued(self, run: AsyncTask, final: protocol.Final) -> None:
        run.event_log = EventLog(run.job)
        run.event_log.put(final)
        await self._finish(run, run.event_log)
        run.queued.set()

    async def _finish(self, run: AsyncTask, event_log: EventLog) -> None:
        try:
            await self._retry_write(lambda: self._register_files(event_log))
            await self._retry_write(lambda: self._rows.end(event_log))
        except Exception:  # whatever the fault, a client waits for this task's end
            log.exception("a task's answer could not be written", task=run.job.id)
            await self._retry_write(lambda: self._rows.end(_unwritable(run.job)))
        del self._runs[run.job.id]
        self._discard_uploads(run.job)
        run.finished.set()

    def _defer(self, run: AsyncTask) -> None:
        if run.deferred or run.state != "queued":
            return
        if run.event_log is not None and run.event_log.status not in _WAITING:
            return
        run.deferred = True
        _stop(run)
        run.admission.close()
        run.queued.set()
        run.finished.set()

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
    event_log.put(failed_with(job, errors.InternalError()))
    return event_log


def _has_ended(run: AsyncTask) -> bool:
    return run.event_log is not None and run.event_log.final is not None


def _stop(run: AsyncTask) -> None:
    if run.runner is not None:
        run.runner.cancel()


def _log_lost(work: "asyncio.Task[None]") -> None:
    if not work.cancelled() and (error := work.exception()):
        log.critical("a task is lost until the next start", task=work.get_name(), exc_info=error)


def _task_of_run(run: AsyncTask) -> Task:
    job, event_log = run.job, run.event_log
    if run.deferred or _has_ended(run):
        event_log = None
    return Task(
        id=job.id,
        key_id=job.key_id,
        kind=job.kind,
        model=job.model,
        status=run.status,
        created_at=job.created_at,
        event_log=event_log,
    )


def _task_of_log(event_log: EventLog) -> Task:
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
