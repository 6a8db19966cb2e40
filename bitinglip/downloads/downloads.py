"""Accepts downloads of models, runs a few at a time, and resumes them after a restart.

The database says which are to be done, the store's partial files how far each is; a download goes
on from these two after any stop. What runs is in no row: after a crash it waits again.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from datetime import UTC, datetime
from typing import Self

import msgspec
import structlog

from bitinglip.audit.log import AuditLog
from bitinglip.background import RECOVERABLE, reason
from bitinglip.db.database import Database
from bitinglip.downloads.audit import end_entry
from bitinglip.downloads.download import (
    RESUMABLE,
    Download,
    Fault,
    Priority,
    Requester,
    State,
    Wanted,
    new_download,
)
from bitinglip.downloads.hub import HubAccess
from bitinglip.downloads.live import FitNote, Live, Outcome, forget_partial
from bitinglip.downloads.rows import DownloadRows
from bitinglip.downloads.turns import Turns
from bitinglip.errors import (
    BitingLipError,
    ConcurrencyLimitExceeded,
    Conflict,
    DownloadNotFound,
    QueueFull,
)
from bitinglip.gateways.owner import ALONE
from bitinglip.settings import Settings
from bitinglip.telemetry.download_metrics import DownloadMetrics
from model_store.disk import check_room
from model_store.errors import StoreError
from model_store.store import ModelStore

Arrived = Callable[[str], None]
log = structlog.get_logger(__name__)

CLEAN_SECONDS = 60.0  #: between two looks for downloads that are too old, or not written yet
_BUSY_SECONDS = 60.0  #: until a client that has too many downloads may try again


class Downloads:
    """Owns all downloads that have not ended."""

    def __init__(
        self,
        rows: DownloadRows,
        store: ModelStore,
        hub: HubAccess,
        settings: Settings,
        audit: AuditLog,
        metrics: DownloadMetrics,
        on_arrival: Arrived,
        fit_note: FitNote,
    ) -> None:
        """``on_arrival`` is told the name of each model that came or changed; ``fit_note`` says
        of one that is planned whether it will fit in memory."""
        self._rows = rows
        self._store = store
        self._hub = hub
        self._settings = settings
        self._audit = audit
        self._metrics = metrics
        self._on_arrival = on_arrival
        self._fit_note = fit_note
        self._open: dict[str, Live] = {}
        self._unsaved: dict[str, Download] = {}  #: ended ones that the database did not take
        #: held from a look at what is open to the write that follows, lest an end come in between
        self._deciding = asyncio.Lock()
        self._working = False
        self._turns = Turns(settings.hub.max_downloads_per_key)
        metrics.watch(self.states)

    @classmethod
    async def open(
        cls,
        db: Database,
        store: ModelStore,
        hub: HubAccess,
        settings: Settings,
        audit: AuditLog,
        metrics: DownloadMetrics,
        on_arrival: Arrived,
        fit_note: FitNote,
        owner: str = ALONE,
    ) -> Self:
        """Take over the downloads that the last stop left open. Raises DatabaseUnavailable."""
        rows = DownloadRows(db, retention=settings.hub.download_retention, owner=owner)
        downloads = cls(rows, store, hub, settings, audit, metrics, on_arrival, fit_note)
        for each in await rows.open():
            each.wait()
            downloads._open[each.id] = Live(each)
        return downloads

    # ---- what the API asks -----------------------------------------------------------------------

    async def ask(self, wanted: Wanted, requester: Requester, priority: Priority) -> Download:
        """Accept a download, or join an equal one: it is in the database when this returns.

        Raises Conflict, StoreError, QueueFull, ConcurrencyLimitExceeded, DiskFull, DownloadFailed
        or DatabaseUnavailable.
        """
        self._hub.check()
        async with self._deciding:
            if (found := self._same_name(wanted)) is not None:
                return await self._join(found, wanted, priority)
            self._check_room(requester.key_id)
            await asyncio.to_thread(self._check_store, wanted)
            download = await self._last(wanted) or new_download(wanted, requester, priority)
            download.queue(requester, priority)
            await self._rows.save(download)
            self._open[download.id] = Live(download)
        self._fill()
        return download

    async def get(self, download_id: str) -> Download:
        """Return a download as it is now. Raises DownloadNotFound."""
        if (live := self._open.get(download_id)) is not None:
            return live.download
        found = self._unsaved.get(download_id) or await self._rows.find(download_id)
        if found is None:
            raise DownloadNotFound(details={"download": download_id[:64]})
        return found

    async def page(
        self, may_see: Callable[[str], bool] | None, *, limit: int, offset: int
    ) -> tuple[list[Download], int]:
        """Return a part of the list, the newest first, and how many there are.

        ``may_see`` says of which models downloads are listed; None: of all.
        """
        models = None if may_see is None else [*filter(may_see, await self._rows.models())]
        rows, total = await self._rows.page(models, limit=limit, offset=offset)
        now = {name: live.download for name, live in self._open.items()} | self._unsaved
        return [now.get(each.id, each) for each in rows], total

    async def cancel(self, download_id: str, *, purge: bool = False) -> Download:
        """End a download; one that has ended stays as it is. ``purge``: remove what has come.

        Raises DownloadNotFound, Conflict, StoreError, DiskFull or DatabaseUnavailable.
        """
        download = await self.get(download_id)
        if (live := self._open.get(download_id)) is not None:
            await self._stop(live)
        elif not download.ended and await self._rows.is_elsewhere(download_id):
            raise Conflict("Another server brings this model to its own store; cancel it there.")
        if download_id in self._unsaved:
            await self._save_again(download)  # what is answered is on the disk
        if purge and download.state in RESUMABLE:
            self._check_needed(download.wanted.repo)
            await asyncio.to_thread(forget_partial, self._store, download.wanted.repo)
        return download

    async def forget(self, download_id: str) -> None:
        """Take a download that has ended off the list. Raises Conflict for one that has not,
        DiskFull or DatabaseUnavailable."""
        async with self._deciding:  # or one that is asked for again now would lose its row
            if download_id in self._open:
                raise Conflict("The download has not ended; cancel it first.")
            if await self._rows.is_elsewhere(download_id):
                raise Conflict("Another server has this download, which has not ended.")
            await self._rows.remove(download_id)
            self._unsaved.pop(download_id, None)

    def _check_needed(self, repo: str) -> None:
        """Raise Conflict if a download waits that goes on with what has come of a repository."""
        if any(live.download.wanted.repo == repo for live in self._open.values()):
            raise Conflict(
                "Another download of the same repository goes on with what has come; it stays."
            )

    async def watch(self, download_id: str) -> AsyncGenerator[Download]:
        """Yield a download as it is, and again after each change, until it has ended.

        Raises DownloadNotFound.
        """
        live = self._open.get(download_id)
        if live is None:
            yield await self.get(download_id)
            return
        while True:
            changed = live.changed
            yield live.download
            if live.download.ended:
                return
            await changed.wait()

    def of_model(self, name: str) -> Download | None:
        """Return the download that brings a model of this name, if one waits or runs."""
        found = (live.download for live in self._open.values())
        return next((each for each in found if each.wanted.name == name and not each.ended), None)

    def unfinished(self) -> Iterable[Download]:
        """Return the downloads that wait or run, in the order in which they go."""
        return sorted((live.download for live in self._open.values()), key=lambda it: it.place)

    def states(self) -> dict[str, int]:
        """Count the downloads that wait and that run."""
        states = [live.download.state for live in self._open.values()]
        return {"queued": states.count("queued"), "running": states.count("running")}

    # ---- start and stop --------------------------------------------------------------------------

    def resume(self) -> None:
        """Let downloads run, once the server answers."""
        self._working = True
        self._fill()

    def suspend(self) -> None:
        """Begin no further download, because the server drains."""
        self._working = False

    async def close(self) -> None:
        """Stop all downloads; the next start resumes them."""
        self.suspend()
        for live in self._open.values():
            live.hurry()
        tasks = [live.task for live in self._open.values() if live.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._save_all_again()

    async def clean(self) -> None:
        """Remove what has expired, and write what could not be written.

        Raises DiskFull or DatabaseUnavailable.
        """
        await self._save_all_again()
        await self._rows.clean()

    # ---- the queue -------------------------------------------------------------------------------

    def _same_name(self, wanted: Wanted) -> Live | None:
        return next(
            (live for live in self._open.values() if live.download.wanted.name == wanted.name), None
        )

    async def _join(self, live: Live, wanted: Wanted, priority: Priority) -> Download:
        """Return a download that is equal to what is asked; a higher priority raises its own."""
        download = live.download
        if download.wanted != wanted or live.cancelled:
            raise Conflict(
                f"Another download of a model named '{wanted.name}' is {download.state}: wait for "
                "it, cancel it, or choose another name.",
                param="name",
                details={"download": download.id},
            )
        before = download.priority
        asked = msgspec.structs.replace(download, priority=priority)
        if asked.place < download.place:
            download.priority = priority
            try:
                await self._rows.save(download)
            except BaseException:
                download.priority = before
                raise
        if live.postponed:
            live.hurry()  # who asks now may know that the hub is back
            self._fill()
        return download

    async def _last(self, wanted: Wanted) -> Download | None:
        """Return the last download of the same, if it is one to be taken up again."""
        last = await self._rows.last(wanted.name)
        if last is None or last.wanted != wanted or last.state not in RESUMABLE:
            return None
        return last

    def _check_room(self, key_id: str) -> None:
        hub = self._settings.hub
        of_key = sum(live.download.requester.key_id == key_id for live in self._open.values())
        if of_key >= hub.max_queued_per_key:
            text = "This API key has too many unfinished downloads."
            raise ConcurrencyLimitExceeded(text, retry_after=_BUSY_SECONDS)
        if len(self._open) >= hub.max_queued:
            raise QueueFull("There are too many unfinished downloads.", retry_after=_BUSY_SECONDS)

    def _check_store(self, wanted: Wanted) -> None:
        if wanted.task == "pull":
            self._store.check_free(wanted.name)
        check_room(self._store.partial, 1)

    def _fill(self) -> None:
        """Start what may run now, in the order of priorities."""
        if not self._working:
            return
        lives = self._open.values()
        waiting = [each.download for each in lives if each.task is None and not each.postponed]
        running = [each.download for each in lives if each.task is not None]
        while len(running) < self._settings.hub.max_downloads:
            if (download := self._turns.next(waiting, running)) is None:
                break
            waiting.remove(download)
            running.append(download)
            download.start()
            live = self._open[download.id]
            live.task = asyncio.create_task(self._run(live), name=download.id)
            live.tell()
        self._share_bandwidth()

    def _share_bandwidth(self) -> None:
        if (total := self._settings.hub.bytes_per_second) is not None:
            running = [live for live in self._open.values() if live.task is not None]
            for live in running:
                live.limit(max(1, total // len(running)))

    # ---- one download ----------------------------------------------------------------------------

    async def _stop(self, live: Live) -> None:
        live.stop()
        if live.task is None:
            live.task = asyncio.create_task(self._run(live), name=live.download.id)
        await asyncio.wait([live.task])

    async def _run(self, live: Live) -> None:
        """Run a download to its end; one fault of it ends no other."""
        try:
            outcome = await live.pull(self._hub, self._store, self._metrics, self._fit_note)
        except OSError as problem:
            fault = Fault("DOWNLOAD_FAILED", f"{reason(problem)}; ask again.")
            outcome = Outcome("failed", fault)
        except (BitingLipError, StoreError) as problem:
            outcome = Outcome("failed", self._hub.fault(problem))
        except Exception:
            log.critical("a download failed by a bug", download=live.download.id, exc_info=True)
            fault = Fault("INTERNAL_ERROR", "The download failed; see the log.")
            outcome = Outcome("failed", fault)
        if not self._postpone(live, outcome):
            await self._end(live, outcome.state, outcome.fault)
        self._fill()

    def _postpone(self, live: Live, outcome: Outcome) -> bool:
        """Let a download wait whose hub does not answer, without its place among those that run.

        Returns False if it has ended.
        """
        if outcome.fault is None or not outcome.may_pass:
            return False
        pause = live.download.postpone(outcome.fault.message, self._settings.hub.retry_for)
        if pause is None:
            return False
        live.postpone(pause, self._fill)
        return True

    async def _end(self, live: Live, state: State, error: Fault | None = None) -> None:
        """End a download: written, then told. Where it cannot be written it is told all the same,
        and written later; a crash before that has it run again."""
        async with self._deciding:
            await self._write_end(live.download, state, error)
        if state == "completed":
            self._on_arrival(live.download.wanted.name)
        self._metrics.ended(state)
        if (entry := end_entry(live.download)) is not None:
            self._audit.remember(entry)
        live.tell()

    async def _write_end(self, download: Download, state: State, error: Fault | None) -> None:
        ended, moment = msgspec.structs.replace(download), datetime.now(UTC)
        ended.end(state, error, moment)
        try:
            await self._rows.save(ended)
        except RECOVERABLE as problem:
            log.warning("the end of a download waits for the database", reason=reason(problem))
            self._unsaved[download.id] = download
        download.end(state, error, moment)
        del self._open[download.id]

    async def _save_again(self, download: Download) -> None:
        await self._rows.save(download)
        self._unsaved.pop(download.id, None)

    async def _save_all_again(self) -> None:
        for download in list(self._unsaved.values()):
            await self._save_again(download)
