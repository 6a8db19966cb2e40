"""Accepts batches of requests, runs them beside everything else, and resumes them after a restart.

The files of results say which lines have ended (``results``), the database in which state a batch
is (``rows``), and nothing else: a batch goes on from these two after any stop. A request whose
result was not written yet then runs again.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Self

import structlog

from bitinglip.access.credentials import Credential
from bitinglip.access.keys import Caller
from bitinglip.background import reason
from bitinglip.batches.files import ClientFiles, new_id
from bitinglip.batches.requests import Requests
from bitinglip.batches.rows import BatchRows, KeptBatch
from bitinglip.batches.run import Ends, Run, files_of
from bitinglip.db.database import Database
from bitinglip.disk_space import DiskSpace
from bitinglip.errors import (
    ConcurrencyLimitExceeded,
    Conflict,
    NotFound,
    QueueFull,
    ShuttingDown,
)
from bitinglip.gateways.membership import Membership
from bitinglip.gateways.owner import ALONE
from bitinglip.settings import Settings
from bitinglip.wire.batches import Batch, BatchRequest, window_text

log = structlog.get_logger(__name__)

_RETRY_SECONDS = 5.0
_BUSY_SECONDS = 60.0  #: until a client that has too many batches may try again


class Batches:
    """Owns all batches that have not ended."""

    def __init__(
        self,
        rows: BatchRows,
        files: ClientFiles,
        requests: Requests,
        caller_of: Callable[[Credential], Caller | None],
        settings: Settings,
        space: DiskSpace,
        membership: Membership | None = None,
    ) -> None:
        """``caller_of`` returns who may still run texts with a credential, or None.

        ``membership``: this server's place among those that share the database.
        """
        self._membership = membership
        self._rows = rows
        self.files = files
        self._requests = requests
        self._caller_of = caller_of
        self._settings = settings
        self._space = space
        self._open: dict[str, Run] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._resumed = asyncio.Event()
        self._suspended = False

    @classmethod
    async def open(
        cls,
        db: Database,
        folder: Path,
        requests: Requests,
        caller_of: Callable[[Credential], Caller | None],
        settings: Settings,
        space: DiskSpace,
        membership: Membership | None = None,
    ) -> Self:
        """Take over the batches that the last stop left open. Raises DatabaseUnavailable."""
        kept = settings.batches
        files = ClientFiles(db, folder, retention=kept.retention, max_bytes=kept.max_bytes)
        owner = ALONE if membership is None else membership.own
        rows = BatchRows(db, retention=kept.retention, owner=owner)
        batches = cls(rows, files, requests, caller_of, settings, space, membership)
        for each in await rows.open():
            batches._start(batches._add(each))
        if membership is not None:
            membership.on_poll(batches.poll_others)
            membership.on_rejoin(batches.drop_lost)
        return batches

    # ---- what the API asks -----------------------------------------------------------------------

    async def create(self, asked: BatchRequest, caller: Caller) -> Batch:
        """Accept a batch: it is in the database when this returns.

        Raises ConcurrencyLimitExceeded, QueueFull, ShuttingDown, DiskFull or DatabaseUnavailable.
        """
        if self._suspended:
            raise ShuttingDown()
        elsewhere = [kept.key_id for kept in await self._rows.elsewhere()]
        self._check_room(caller.key_id, elsewhere)
        now = int(time.time())
        batch = Batch(
            id=new_id("batch_"),
            endpoint=asked.endpoint,
            input_file_id=asked.input_file_id,
            completion_window=window_text(asked.completion_window),
            created_at=now,
            expires_at=now + int(asked.completion_window),
            metadata=asked.metadata,
        )
        run = self._add(KeptBatch(batch, caller.credential))
        try:
            await self._rows.save(run.kept)
        except BaseException:
            del self._open[batch.id]
            raise
        self._start(run)
        return batch

    async def get(self, batch_id: str) -> KeptBatch:
        """Return a batch as it is now. Raises NotFound."""
        if run := self._open.get(batch_id):
            return run.kept
        kept = await self._rows.find(batch_id)
        if kept is None:
            raise NotFound("There is no batch with this id; batches expire.")
        return kept

    async def list(self, *, key_id: str | None, after: str | None, most: int) -> list[Batch]:
        """Return so many batches that are older than one, of a key or of all, the newest first."""
        rows = await self._rows.list(key_id=key_id, after=after, most=most)
        live = {batch_id: run.kept for batch_id, run in self._open.items()}
        return [live.get(kept.batch.id, kept).batch for kept in rows]

    async def cancel(self, batch_id: str) -> Batch:
        """Have a batch end as cancelled. Raises NotFound, or Conflict for one that has ended."""
        kept = await self.get(batch_id)
        run = self._open.get(batch_id)
        if run is None and self._membership is not None and not kept.batch.ended:
            await self._rows.ask_cancel(batch_id)
            self._membership.tell()
            return (await self.get(batch_id)).batch
        if run is None or kept.batch.ended:
            raise Conflict(f"This batch has ended; it is {kept.batch.status}.")
        await run.cancel()
        return kept.batch

    async def files_in_use(self) -> set[str]:
        """Return the files that batches read or write which have not ended.

        Raises DatabaseUnavailable.
        """
        here = [run.kept for run in self._open.values()]
        batches = [*here, *await self._rows.elsewhere()]
        return {file for kept in batches for file in files_of(kept.batch)}

    def _uses(self, file_id: str) -> bool:
        """Return whether a batch of this server that has not ended reads or writes a file."""
        return any(file_id in files_of(run.kept.batch) for run in self._open.values())

    # ---- other servers ---------------------------------------------------------------------------

    async def poll_others(self) -> None:
        """Take up what other servers have left, and cancel what they were asked to cancel.

        Raises DiskFull or DatabaseUnavailable.
        """
        if self._suspended:
            return
        for kept in await self._rows.take_up():
            self._start(self._add(kept))
        for batch_id in await self._rows.to_cancel():
            if (run := self._open.get(batch_id)) is not None:
                await run.cancel()

    async def drop_lost(self) -> None:
        """Run no further what another server has taken up. Raises DatabaseUnavailable."""
        for run in list(self._open.values()):
            if not await self._rows.is_own(run.kept.batch.id):
                run.stop(Ends.LOST)

    # ---- start and stop --------------------------------------------------------------------------

    def resume(self) -> None:
        """Let batches run, once the models are known."""
        self._resumed.set()

    def suspend(self) -> None:
        """Begin no further request, because the server drains."""
        self._suspended = True
        for run in self._open.values():
            run.stop(Ends.SUSPENDED)

    async def close(self) -> None:
        """Stop all batches; the next start resumes them."""
        self.suspend()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for run in self._open.values():
            await run.settle()

    async def clean(self) -> None:
        """Remove what has expired. Raises OSError, DiskFull or DatabaseUnavailable."""
        await self._rows.clean()
        in_use = await self.files_in_use()
        # What begins here meanwhile is asked for as it is then.
        await self.files.clean(lambda file_id: file_id in in_use or self._uses(file_id))

    # ---- one batch -------------------------------------------------------------------------------

    def _check_room(self, key_id: str, elsewhere: Sequence[str]) -> None:
        """``elsewhere``: the keys of the batches that other servers run."""
        settings, wait = self._settings.batches, _BUSY_SECONDS
        owners = [*elsewhere, *(run.kept.key_id for run in self._open.values())]
        of_key = owners.count(key_id)
        if of_key >= settings.max_open_per_key:
            text = "This API key has too many unfinished batches."
            raise ConcurrencyLimitExceeded(text, retry_after=wait)
        if len(owners) >= settings.max_open:
            raise QueueFull("There are too many unfinished batches.", retry_after=wait)

    def _add(self, kept: KeptBatch) -> Run:
        run = self._open[kept.batch.id] = Run(
            kept,
            self._rows,
            self.files,
            self._requests,
            self._caller_of,
            self._settings,
            self._space,
        )
        return run

    def _start(self, run: Run) -> None:
        batch_id = run.kept.batch.id
        task = asyncio.create_task(self._run(run), name=batch_id)
        self._tasks[batch_id] = task
        task.add_done_callback(partial(self._ended, batch_id))

    def _ended(self, batch_id: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(batch_id) is task:
            del self._tasks[batch_id]

    async def _run(self, run: Run) -> None:
        await self._resumed.wait()
        batch = run.kept.batch
        try:
            await self._run_again(run)
        except Exception:  # a fault of one batch ends no other
            log.critical("a batch is lost until the next start", batch=batch.id, exc_info=True)
            return
        if batch.ended or not await run.is_own():
            self._forget(run)

    def _forget(self, run: Run) -> None:
        """Hold a batch no more, unless it was taken up again meanwhile."""
        if self._open.get(run.kept.batch.id) is run:
            del self._open[run.kept.batch.id]

    async def _run_again(self, run: Run) -> None:
        """Run a batch; after a fault of the disk from where it stands."""
        while True:
            try:
                return await run.run()
            except OSError as error:
                log.warning("a batch waits for the disk", reason=reason(error))
                await run.settle()
                await asyncio.sleep(_RETRY_SECONDS)
