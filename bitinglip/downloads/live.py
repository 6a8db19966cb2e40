"""One download that has not ended: runs its process, and tells those that watch."""

import asyncio
import shutil
from collections.abc import Callable
from contextlib import aclosing

import msgspec
import structlog

from bitinglip.access.narrowing import model_allowed
from bitinglip.downloads.download import Download, Fault, State
from bitinglip.downloads.hub import HubAccess
from bitinglip.downloads.process import PullProcess
from bitinglip.telemetry.download_metrics import DownloadMetrics
from model_store.disk import store_errors
from model_store.hub.messages import Message, Planned, Progressed, Pulled, Refused, Waits
from model_store.manifest import Manifest
from model_store.store import ModelStore

log = structlog.get_logger(__name__)

_DIED = "The download's process ended without a word (exit code {code}); ask again to go on."


FitNote = Callable[[Manifest], str]


class Live:
    """A download that has not ended. ``task`` runs it, or ends it before it has run."""

    def __init__(self, download: Download) -> None:
        self.download = download
        self.task: asyncio.Task[None] | None = None
        self.changed = asyncio.Event()  #: is set, and replaced, at each change
        self.cancelled = False
        self._process: PullProcess | None = None
        self._share: int | None = None  #: of the bandwidth, in bytes per second

    def tell(self) -> None:
        """Wake those that watch."""
        self.changed.set()
        self.changed = asyncio.Event()

    def stop(self) -> None:
        """Have it end as cancelled, unless the model is in the store already."""
        self.cancelled = True
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
    ) -> tuple[State, Fault | None]:
        """Run the process to its end; return how that was.

        ``fit_note`` says of a model that is planned whether it will fit in memory. Raises OSError,
        TokenRefused or DownloadFailed.
        """
        if self.cancelled:
            return "cancelled", None
        share = self._share
        order = await asyncio.to_thread(hub.order, self.download.wanted, share, self._bases(store))
        process = self._process = await PullProcess.start(order, self.download.id)
        if self._share is not None and self._share != share:
            process.limit(self._share)
        last: Message | None = None
        try:
            if self.cancelled:  # while it was started
                return "cancelled", None
            async with aclosing(process.messages()) as messages:
                async for last in messages:
                    self._note(last, metrics, fit_note)
        except msgspec.MsgspecError as error:
            log.warning("a download's process says what is no message", reason=str(error))
        finally:
            self._process = None
            code = await asyncio.shield(process.close())
        if isinstance(last, Pulled):
            await asyncio.to_thread(store.listing.look)  # before anybody is told
            return "completed", None
        if self.cancelled:
            return "cancelled", None
        if isinstance(last, Refused):
            return "failed", Fault(last.code, last.message)
        log.warning("a download's process died", code=code, said=process.last_lines)
        return "failed", Fault("DOWNLOAD_FAILED", _DIED.format(code=code))

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
