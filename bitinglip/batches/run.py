"""Runs one batch to its end, from the state that an earlier run of the server may have left."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog

from bitinglip import errors
from bitinglip.access.credentials import Credential
from bitinglip.access.keys import Caller
from bitinglip.batches import lines
from bitinglip.batches.files import ClientFiles
from bitinglip.batches.lines import Line
from bitinglip.batches.requests import Requests
from bitinglip.batches.results import Result, Results
from bitinglip.batches.rows import CANCELLABLE, BatchRows, KeptBatch
from bitinglip.disk_space import DiskSpace
from bitinglip.settings import Settings
from bitinglip.wire.batches import (
    Batch,
    Counts,
    LineError,
    LineErrors,
    RequestLine,
    answered_line,
    unanswered_line,
)
from bitinglip.wire.errors import error_body
from model_store.errors import StoreError

T = TypeVar("T")
log = structlog.get_logger(__name__)

_RETRY_SECONDS = 1.0
_GROUP = 500  #: lines that are ended at once where none of them is run


class Ends(Enum):
    """Says why the lines of a batch are run no further."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    SUSPENDED = "suspended"  #: the server stops; the next start goes on
    LOST = "lost"  #: another server runs it, since this one was taken for dead


_NOT_RUN = {
    Ends.CANCELLED: "The batch was cancelled before this request was run.",
    Ends.EXPIRED: "The batch expired before this request was run.",
}


class Run:
    """Runs a batch; its state in ``kept`` is what clients are shown."""

    def __init__(
        self,
        kept: KeptBatch,
        rows: BatchRows,
        files: ClientFiles,
        requests: Requests,
        caller_of: Callable[[Credential], Caller | None],
        settings: Settings,
        space: DiskSpace,
    ) -> None:
        self.kept = kept
        self._rows = rows
        self._files = files
        self._requests = requests
        self._caller_of = caller_of
        self._settings = settings
        self._space = space
        self._results: Results | None = None
        self._why = Ends.COMPLETED
        self._stopped = asyncio.Event()
        self._output_id, self._error_id = result_files(kept.batch.id)

    # ---- what ends it early ----------------------------------------------------------------------

    def stop(self, why: Ends) -> None:
        """Have its lines run no further; the first reason holds."""
        if not self._stopped.is_set():
            self._why = why
            self._stopped.set()

    async def cancel(self) -> None:
        """Note that it is to be cancelled, and stop it. Raises DiskFull or DatabaseUnavailable."""
        batch = self.kept.batch
        if batch.status in CANCELLABLE:
            batch.status, batch.cancelling_at = "cancelling", int(time.time())
            own = await self._rows.save(self.kept)
            self.stop(Ends.CANCELLED if own else Ends.LOST)

    async def settle(self) -> None:
        """Wait until the results that there are stand on the disk."""
        if self._results is not None:
            await self._results.settle()

    # ---- its way ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run it until it has ended, or the server stops."""
        batch, own = self.kept.batch, self._settings
        path = self._files.path(batch.input_file_id)
        check = partial(
            lines.scan,
            path,
            batch.endpoint,
            most_lines=own.batches.max_lines,
            longest=own.server.max_body_bytes,
        )
        try:
            found = await asyncio.to_thread(check)
        except OSError:
            found = lines.Scan(errors=[LineError("missing_file", "The input file is not there.")])
        if found.errors:
            batch.status, batch.failed_at = "failed", int(time.time())
            batch.errors = LineErrors(found.errors)
            await self._save()
            return
        if not await self.is_own():  # another server may be writing its results
            return
        output, bad = self._files.path(self._output_id), self._files.path(self._error_id)
        results = self._results = await Results.open(output, bad, self._space)
        batch.request_counts.total = len(found.lines)
        if batch.status == "validating":
            batch.status, batch.in_progress_at = "in_progress", int(time.time())
            await self._save()
        if batch.status == "cancelling":
            self.stop(Ends.CANCELLED)
        if self._why is Ends.LOST:
            return
        await self._show_results()
        await self._work(results, [each for each in found.lines if each.mark not in results.done])
        await results.settle()
        if self._why not in (Ends.SUSPENDED, Ends.LOST) and await self.is_own():
            await self._end(results, found.lines)

    async def _work(self, results: Results, todo: list[Line]) -> None:
        """Run lines, some at once, until none is left or something stops it."""
        left = iter(todo)
        at_once = min(self._settings.batches.lines_at_once_per_batch, len(todo))
        workers = [asyncio.create_task(self._run_lines(results, left)) for _ in range(at_once)]
        stopped = asyncio.create_task(self._stopped.wait())
        done = asyncio.gather(*workers)
        try:
            seconds = self.kept.batch.expires_at - time.time()
            waited: list[asyncio.Future[Any]] = [done, stopped]
            await asyncio.wait(
                waited, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED
            )
            if self._why is Ends.SUSPENDED:  # what runs may end while the server drains
                await done
            elif done.done():
                await done  # raises what a worker has died of
            elif not self._stopped.is_set():
                self.stop(Ends.EXPIRED)
        finally:
            for each in (*workers, stopped):
                each.cancel()
            await asyncio.gather(*workers, stopped, done, return_exceptions=True)

    async def _run_lines(self, results: Results, left: Iterator[Line]) -> None:
        for line in left:
            result = None if self._stopped.is_set() else await self._run_line(line)
            if result is None:
                return
            if not await self.is_own():
                self.stop(Ends.LOST)
                return
            await results.add([result])
            await self._show_results()

    async def _run_line(self, line: Line) -> Result | None:
        """Run a request; None if it has no result, as the server or the batch ends."""
        holder = partial(self._caller_of, self.kept.credential)
        number = f"batch_req_{secrets.token_hex(16)}"
        failed: errors.BitingLipError | None = None
        try:
            answer = await self._requests.answer(
                holder, self.kept.batch.endpoint, partial(self._body, line), number
            )
        except errors.ShuttingDown:
            self.stop(Ends.SUSPENDED)
            return None
        except errors.BitingLipError as error:
            if holder() is None:  # which is why it was cancelled
                self.stop(Ends.CANCELLED)
                return None
            failed = error
        except StoreError as error:
            failed = errors.from_code(error.code, error.message)
        except OSError:
            raise
        except Exception:  # whatever the fault, the other lines go on
            log.exception("a request of a batch failed", batch=self.kept.batch.id)
            failed = errors.InternalError()
        custom_id = (await self._read(line)).custom_id
        if failed is not None:
            body, status = error_body(failed, number, openai=True), errors.answer(failed).status
            return Result(line.mark, answered_line(number, custom_id, status, body), failed=True)
        shown = answered_line(number, custom_id, 200, answer.body, answer.ignored)
        return Result(line.mark, shown, failed=False, usage=lines.usage_of(shown))

    async def _read(self, line: Line) -> RequestLine:
        path = self._files.path(self.kept.batch.input_file_id)
        return await asyncio.to_thread(lines.read, path, line)

    async def _body(self, line: Line) -> bytes:
        return bytes((await self._read(line)).body)

    async def _end(self, results: Results, all_lines: list[Line]) -> None:
        """End the lines that were not run, and the batch."""
        batch = self.kept.batch
        rest = [each for each in all_lines if each.mark not in results.done]
        if not rest:
            self._why = Ends.COMPLETED if self._why is Ends.EXPIRED else self._why
        if self._why is Ends.COMPLETED:
            batch.status, batch.finalizing_at = "finalizing", int(time.time())
            if not await self._save():
                return
        path = self._files.path(batch.input_file_id)
        for start in range(0, len(rest), _GROUP):
            group = rest[start : start + _GROUP]
            await results.add(await asyncio.to_thread(self._not_run, path, group))
        await self._show_results(last=True)
        batch.status = self._why.value
        setattr(batch, f"{self._why.value}_at", int(time.time()))
        await self._save()

    def _not_run(self, path: Path, group: list[Line]) -> list[Result]:
        code, text = f"batch_{self._why.value}", _NOT_RUN[self._why]
        shown: list[Result] = []
        for line in group:
            number = f"batch_req_{secrets.token_hex(16)}"
            custom_id = lines.read(path, line).custom_id
            shown.append(
                Result(line.mark, unanswered_line(number, custom_id, code, text), failed=True)
            )
        return shown

    async def _show_results(self, *, last: bool = False) -> None:
        """Let clients see what there is: the counts, and each file once it holds a line."""
        assert self._results is not None
        batch, results = self.kept.batch, self._results
        counts: Counts = batch.request_counts
        counts.completed, counts.failed = results.completed, results.failed
        batch.usage = results.usage
        key_id, name = self.kept.key_id, batch.id
        if results.completed and (last or batch.output_file_id is None):
            filename = f"{name}_output.jsonl"
            await _kept(lambda: self._files.register(self._output_id, key_id, filename))
            batch.output_file_id = self._output_id
        if results.failed and (last or batch.error_file_id is None):
            filename = f"{name}_error.jsonl"
            await _kept(lambda: self._files.register(self._error_id, key_id, filename))
            batch.error_file_id = self._error_id

    async def is_own(self) -> bool:
        """Return whether it is this server's still; wait for a database that is away."""
        return await _kept(lambda: self._rows.is_own(self.kept.batch.id))

    async def _save(self) -> bool:
        """Write its state; one that is another server's by now is run no further here."""
        own = await _kept(lambda: self._rows.save(self.kept))
        if not own:
            self.stop(Ends.LOST)
        return own


def result_files(batch_id: str) -> tuple[str, str]:
    """Return the ids of the files of a batch's results: of its answers, and of its errors."""
    own = batch_id.removeprefix("batch_")
    return f"file-{own}-output", f"file-{own}-errors"


def files_of(batch: Batch) -> tuple[str, ...]:
    """Return the files that a batch reads or writes."""
    return (batch.input_file_id, *result_files(batch.id))


async def _kept(write: Callable[[], Awaitable[T]]) -> T:
    """Write until it succeeds: a full disk delays a batch, it loses nothing."""
    while True:
        with suppress(errors.DiskFull, errors.DatabaseUnavailable):  # the database says so, once
            return await write()
        await asyncio.sleep(_RETRY_SECONDS)
