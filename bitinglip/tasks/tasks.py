"""Tasks are found by id: every job while it is in memory, asynchronous ones in the database too.

An asynchronous task is in the database before its client learns of it, and so is its end.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import ExitStack
from typing import Any, TypeVar

import msgspec
import structlog

from bitinglip import errors
from bitinglip.scheduling.dispatch.dispatcher import Dispatcher
from bitinglip.scheduling.event_log import EventLog, failed_with
from bitinglip.scheduling.job import Claim, Job
from bitinglip.tasks.async_task import (
    WAITING,
    AsyncTask,
    describe_log,
    describe_open,
    has_ended,
    log_lost,
    stop,
    unwritable,
)
from bitinglip.tasks.elsewhere import Elsewhere
from bitinglip.tasks.store import Filter, Task, TaskStore
from model_store.errors import StoreError
from workers import protocol

log = structlog.get_logger(__name__)

_RETRY_SECONDS = 1.0
_CLOSE_SECONDS = 5.0  #: for the ends that are known and not written yet
T = TypeVar("T")

#: writes what an ended job leaves behind: its owner may ask for it
Finish = Callable[[EventLog], Awaitable[None]]
#: removes what a client sent with a job that is over
DiscardUploads = Callable[[Job], None]


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
        elsewhere: Elsewhere | None = None,
    ) -> None:
        """``elsewhere``: the tasks of other servers, where they share the database."""
        self._elsewhere = elsewhere
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
        return describe_open(open_task)

    async def get(self, task_id: str) -> Task:
        """Return a task by its id. Raises TaskNotFound."""
        if open_task := self._open.get(task_id):
            return describe_open(open_task)
        event_log = self._recent(task_id)
        if event_log is not None and not self._expired(event_log):
            return describe_log(event_log)
        if task := await self._rows.get(task_id):
            return task
        raise errors.TaskNotFound()

    async def list(self, wanted: Filter, *, limit: int, offset: int) -> tuple[list[Task], int]:
        """Return one page, the newest first, and the number of all."""
        held = {
            event_log.job.id: describe_log(event_log) for event_log in self._dispatcher.event_logs()
        }
        held |= {open_task.job.id: describe_open(open_task) for open_task in self._open.values()}
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
            stop(open_task)
            await self._end_unqueued(open_task, protocol.Cancelled(id=task_id))
        elif open_task is None and self._elsewhere and self._recent(task_id) is None:
            await self._elsewhere.cancel(task_id)
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
            self._cancel_unqueued(open_task)
        return len(waiting)

    def _cancel_unqueued(self, open_task: AsyncTask) -> None:
        stop(open_task)
        self._start(
            open_task, self._end_unqueued(open_task, protocol.Cancelled(id=open_task.job.id))
        )

    async def event_log(self, task_id: str) -> EventLog | None:
        """Return a task's event log once it is queued; None if it is no longer in memory."""
        if open_task := self._open.get(task_id):
            await open_task.queued.wait()
            return open_task.event_log
        return self._recent(task_id)

    def _recent(self, task_id: str) -> EventLog | None:
        """Return the event log of a job that is still in memory, if it tells how it ended."""
        event_log = self._dispatcher.find(task_id)
        return event_log if event_log is not None and self._tells(event_log) else None

    def _tells(self, event_log: EventLog) -> bool:
        """Return whether an event log tells how a job ended.

        That of a task which another server may have taken up does not: its row does.
        """
        return self._elsewhere is None or not event_log.job.asynchronous

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
            if self._elsewhere is not None:
                await self._elsewhere.ended(task_id)
            return True
        await open_task.finished.wait()
        return not open_task.deferred

    # ---- start and stop --------------------------------------------------------------------------

    async def recover(self) -> None:
        """Requeue the tasks that the last stop left open; called before the first request."""
        self._take_up(await self._rows.recover())

    def _take_up(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            open_task = self._open[job.id] = AsyncTask(job)
            self._start(open_task, self._requeue(open_task))

    async def poll_others(self) -> None:
        """Take up what other servers have left, and cancel what they were asked to cancel.

        While this one drains it releases its own waiting tasks to them. Raises DiskFull or
        DatabaseUnavailable.
        """
        if self._suspended:
            deferred = [name for name, each in self._open.items() if each.deferred]
            if deferred:
                await self._rows.release(deferred)
                for name in deferred:
                    del self._open[name]
            return
        self._take_up(await self._rows.take_up())
        for name in await self._rows.to_cancel():
            open_task = self._open.get(name)
            if open_task is not None and open_task.event_log is None:
                self._cancel_unqueued(open_task)
            else:
                self._dispatcher.cancel(name)

    async def open_elsewhere(self) -> set[str]:
        """Return the tasks that other servers have not ended. Raises DatabaseUnavailable."""
        return set() if self._elsewhere is None else await self._rows.open_ids(own=False)

    async def drop_lost(self) -> None:
        """Drop the tasks that other servers have claimed, as they took this one for dead.

        Raises DatabaseUnavailable.
        """
        held = list(self._open)  # before the look: what comes later is this server's
        own = await self._rows.open_ids(own=True)
        for open_task in [self._open[name] for name in held if name in self._open]:
            if open_task.job.id in own:
                continue
            if open_task.event_log is None:
                self._cancel_unqueued(open_task)
            else:
                self._dispatcher.cancel(open_task.job.id)

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
            if open_task.runner is not None and has_ended(open_task)
        ]
        if runners:
            await asyncio.wait(runners, timeout=_CLOSE_SECONDS)
        for open_task in open_tasks:
            stop(open_task)
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
        open_task.runner.add_done_callback(log_lost)

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
                if await self._retry(lambda: self._rows.begin(open_task.job)):
                    open_task.state = "running"
                else:  # another server computes it, or its client has removed it
                    self._dispatcher.cancel(open_task.job.id)
            await event_log.end()
            await self._finish(open_task, event_log)

    async def _end_unqueued(self, open_task: AsyncTask, final: protocol.Final) -> None:
        open_task.event_log = EventLog(open_task.job)
        open_task.event_log.put(final)
        await self._finish(open_task, open_task.event_log)
        open_task.queued.set()

    async def _finish(self, open_task: AsyncTask, event_log: EventLog) -> None:
        if await self._is_own(open_task) and await self._write_end(open_task, event_log):
            self._dispatcher.record(open_task.job.id)
            self._discard_uploads(open_task.job)
        self._open.pop(open_task.job.id, None)
        open_task.finished.set()

    async def _is_own(self, open_task: AsyncTask) -> bool:
        return await self._retry(lambda: self._rows.is_own(open_task.job.id))

    async def _write_end(self, open_task: AsyncTask, event_log: EventLog) -> bool:
        """Write a task's end; return False where another server has taken it up meanwhile."""
        try:
            await self._retry(lambda: self._finish_work(event_log))
            ended = await self._retry(lambda: self._rows.end(event_log))
        except Exception:  # whatever the fault, a client waits for this task's end
            log.exception("a task's answer could not be written", task=open_task.job.id)
            ended = await self._retry(lambda: self._rows.end(unwritable(open_task.job)))
        # It was written by the attempt before where the database did not get to say so.
        return ended or await self._is_own(open_task)

    def _defer(self, open_task: AsyncTask) -> None:
        if open_task.deferred or open_task.state != "queued":
            return
        if open_task.event_log is not None and open_task.event_log.status not in WAITING:
            return
        open_task.deferred = True
        stop(open_task)
        open_task.admission.close()
        open_task.queued.set()
        open_task.finished.set()

    async def _retry(self, act: Callable[[], Awaitable[T]]) -> T:
        """Write until it succeeds: a full disk delays what clients learn, it loses nothing."""
        while True:
            try:
                return await act()
            except (errors.DiskFull, errors.DatabaseUnavailable):  # the database says so, once
                await asyncio.sleep(_RETRY_SECONDS)

    def _expired(self, event_log: EventLog) -> bool:
        return event_log.ended is not None and time.monotonic() - event_log.ended > self._retention
