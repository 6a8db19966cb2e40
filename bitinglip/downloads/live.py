"""Runs the process of one download that has not ended, and tells its watchers."""

import asyncio
import shutil
from collections.abc import Callable
from contextlib import aclosing
from typing import NamedTuple

import msgspec
import structlog

from bitinglip.access.narrowing import model_allowed
from bitinglip.downloads.download import Download, Fault, State
from bitinglip.downloads.hub import HubAccess
from bitinglip.downloads.process import PullProcess
from bitinglip.telemetry.download_metrics import DownloadMetrics
from model_store.disk import store_errors
from model_store.hub.messages import Message, Planned, Progressed, Pulled, Refused, Waits
from model_store.manifest import HUB, Manifest
from model_store.store import ModelStore

log = structlog.get_logger(__name__)


class Outcome(NamedTuple):
    """Says how one run of a download's process has ended."""

    state: State
    fault: Fault | None = None
    may_pass: bool = False  #: the hub did not answer, and may when it is asked again


FitNote = Callable[[Manifest], str]


class Live:
    """Holds a download that has not ended. ``task`` runs it, or ends it before it has run."""

    def __init__(self, download: Download) -> None:
        self.download = download
        self.task: asyncio.Task[None] | None = None
        self.changed = asyncio.Event()  #: is set, and replaced, at each change
        self.cancelled = False
        self._timer: asyncio.TimerHandle | None = None
        self._process: PullProcess | None = None
        self._share: int | None = None  #: of the bandwidth, in bytes per second

    @property
    def postponed(self) -> bool:
        """Return whether it waits until the hub is asked again."""
        return self._timer is not None

    def postpone(self, seconds: float, then: Callable[[], None]) -> None:
        """Let it wait, and its task with it; ``then`` is called once it may run again."""

        def end() -> None:
            self.hurry()
            then()

        self.task = None
        self._timer = asyncio.get_running_loop().call_later(seconds, end)
        self.tell()

    def hurry(self) -> None:
        """Let it wait no longer for its hub."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def tell(self) -> None:
        """Wake those that watch."""
        self.changed.set()
        self.changed = asyncio.Event()

    def stop(self) -> None:
        """Have it end as cancelled, unless the model is in the store already."""
        self.cancelled = True
        self.hurry()
        if self._process is not None:
            self._process.kill()

    def limit(self, share: int) -> None:
        """Set its share of the bandwidth, in bytes per second."""
        if share != self._share:
            self._share = share
            if self._process is not None:
                self._process.limit(share)

    async def pull(
        self, hub: HubAccess, store: ModelStore, metrics: DownloadMetrics, fit_note: FitNote
    ) -> Outcome:
        """Run the process to its end; return how that was.

        ``fit_note`` says of a model that is planned whether it will fit in memory. Raises OSError,
        TokenRefused or DownloadFailed.
        """
        if self.cancelled:
            return Outcome("cancelled")
        if await self._is_here(store):
            return Outcome("completed")
        last, ending = await self._run(hub, store, metrics, fit_note)
        if isinstance(last, Pulled):
            await asyncio.to_thread(store.listing.refresh)  # before watchers are told
            return Outcome("completed")
        if self.cancelled:
            return Outcome("cancelled")
        if last is not None:
            return Outcome("failed", Fault(last.code, last.message), last.may_pass)
        if await self._is_here(store):
            return Outcome("completed")
        told = f"The download's process {ending}. Ask again to go on."
        return Outcome("failed", Fault("DOWNLOAD_FAILED", told))

    async def _run(
        self, hub: HubAccess, store: ModelStore, metrics: DownloadMetrics, fit_note: FitNote
    ) -> tuple[Pulled | Refused | None, str]:
        """Run the process to its end; return its last word, if it had one, and how it ended."""
        share, last = self._share, None
        order = await asyncio.to_thread(hub.order, self.download.wanted, share, self._bases(store))
        process = self._process = await PullProcess.start(order, self.download.id)
        if self._share is not None and self._share != share:
            process.limit(self._share)
        try:
            if self.cancelled:  # while it was started
                process.kill()
            async with aclosing(process.messages()) as messages:
                async for message in messages:
                    self._note(message, metrics, fit_note)
                    if isinstance(message, Pulled | Refused):
                        last = message
        except msgspec.MsgspecError as error:
            log.warning("a download's process says what is no message", reason=str(error))
        finally:
            self._process = None
            code = await asyncio.shield(process.close())
        ending = process.ending(code)
        if last is None and not self.cancelled:
            log.warning("a download's process died", how=ending, said=process.last_lines)
        return last, ending

    async def _is_here(self, store: ModelStore) -> bool:
        """Return whether a process has brought the model that was ended before it could say so.

        It was not there when it was asked for.
        """
        wanted, download = self.download.wanted, self.download
        if wanted.task != "pull" or wanted.include:
            return False
        await asyncio.to_thread(store.listing.refresh)
        found = store.listing.find(wanted.name)
        if found is None or found.source != f"{HUB}{wanted.repo}":
            return False
        download.kind, download.commit = found.kind, found.revision
        download.bytes_total = download.bytes_total or found.total_bytes
        return True

    def _bases(self, store: ModelStore) -> tuple[str, ...] | None:
        """Return the models that an adapter may be for: it opens its base to the key."""
        globs = self.download.requester.models
        if globs is None:
            return None
        return tuple(name for name in store.names() if model_allowed(globs, name))

    def _note(self, message: Message, metrics: DownloadMetrics, fit_note: FitNote) -> None:
        download = self.download
        match message:
            case Waits():
                download.waits = True
            case Planned():
                expected = message.expected
                download.plan(message, () if expected is None else (fit_note(expected),))
            case Progressed():
                metrics.received(download.progress(message))
            case Pulled():
                download.kind, download.commit = message.kind, message.revision
                download.changes = message.changes
                download.bytes_total = download.bytes_total or message.total_bytes
        self.tell()


def forget_partial(store: ModelStore, repo: str) -> None:
    """Remove what has come of a repository.

    Raises PullRunning while another program pulls it, or BadFiles if the disk refuses.
    """
    with store_errors("What has come cannot be removed"), store.pulling(repo) as folder:
        shutil.rmtree(folder)
