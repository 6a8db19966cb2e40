"""Takes the files that a worker is to open from its gateway: the agent's side of the copying."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

from workers.framing import BadFrame
from workers.nodes.files import in_thread
from workers.nodes.link import Link, LinkLost, decode
from workers.nodes.messages import Kind, Need, OpenWorker, Refused, Stored, StoreFacts, Trees
from workers.nodes.models.parts import Damaged, NoRoom, Part
from workers.nodes.models.store import NodeModels, Stay
from workers.nodes.models.trees import check_tree

log = logging.getLogger(__name__)

_TELL_SECONDS = 0.5
_WAIT_SECONDS = 0.25  #: between two looks at what others bring
_SILENT_SECONDS = 120.0  #: as long as a gateway may pause that has a worker here
_DRAIN_SECONDS = 10.0  #: that a gateway has to hear why its files are not taken


class WorkerModels:
    """Holds the folders that one worker has open, from their coming to the worker's end."""

    def __init__(self, models: NodeModels, node: str, origin: str) -> None:
        self._models, self._node, self._origin = models, node, origin
        self._stays: list[Stay] = []
        self._lent: Stay | None = None  #: the folder that holds what jobs name
        self._paths: dict[str, str] = {}  #: by what the gateway calls them
        self._taking: set[asyncio.Task[None]] = set()
        self._told_at = 0.0

    def local(self, source: str) -> str | None:
        """Return where files of the gateway are on this machine; None if they have not come."""
        return self._paths.get(source)

    @property
    def lent(self) -> str:
        """Return the folder in which the worker finds what jobs name."""
        return str(self._lent.path) if self._lent is not None else ""

    async def release(self) -> None:
        """Stop what comes and let go of all; returns when that is done."""
        for task in self._taking:
            task.cancel()
        await asyncio.gather(*self._taking, return_exceptions=True)
        # What is lent goes first: its contents go with the folders that it was taken from.
        stays = [*filter(None, [self._lent]), *self._stays]
        self._stays, self._lent = [], None
        for stay in stays:
            await self._end(stay)

    async def take(self, link: Link) -> None:
        """Take what a connection brings, and say when it is there, or why it cannot be.

        Raises BadFrame or LinkLost.
        """
        task = asyncio.ensure_future(self._take(link))
        self._taking.add(task)
        task.add_done_callback(self._taking.discard)
        try:
            await task
        except NoRoom as error:
            refused = Refused(
                code="DISK_FULL",
                message=f"The node {self._node} has no room for the files of the model: {error}.",
            )
        except Damaged:
            text = f"The files that came to the node {self._node} are not those announced: they "
            refused = Refused(message=text + "change on the gateway, or a disk is damaged.")
        except OSError as error:
            why = error.strerror or type(error).__name__
            text = f"The node {self._node} could not keep the files of the model ({why})."
            refused = Refused(message=text)
        else:
            link.send(Kind.KEPT)
            await link.drain()
            return
        log.warning("%s", refused.message)
        link.tell(Kind.REFUSED, refused)
        # What is on its way is read: the answer may be lost with a connection that closes on it.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while True:
                    await link.receive()

    async def _take(self, link: Link) -> None:
        kind, payload = await link.receive()
        if kind != Kind.TREES:
            raise BadFrame(f"a frame {kind.name} where files are to be listed")
        listed = decode(payload, Trees)
        for tree in listed.trees:
            check_tree(tree)
        if self._lent is None:
            self._lent = await self._begin(self._models.lend)
        before = 0
        for tree in listed.trees:
            stay = await self._begin(self._models.begin, tree, self._origin)
            try:
                await self._fetch(link, stay, before)
                path = stay.path
                if listed.lend:
                    path = await in_thread(self._models.add_lent, self._lent, stay)
            except BaseException:
                await asyncio.shield(self._end(stay))
                raise
            before += stay.size
            self._stays.append(stay)
            self._paths[tree.source] = str(path)

    async def _begin(self, call: Callable[..., Stay], *args: object) -> Stay:
        """Begin in a thread; what has begun is ended if this was cancelled."""
        running = asyncio.ensure_future(asyncio.to_thread(call, *args))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait({running})
            if running.exception() is None:
                await self._end(running.result())
            raise

    async def _fetch(self, link: Link, stay: Stay, before: int) -> None:
        """Bring all files of a folder; those that another connection brings are waited for."""
        while True:
            for part in list(stay.parts.values()):
                await self._fetch_part(link, stay, part, before)
            if await in_thread(self._models.claim, stay):
                break
            if not stay.parts:
                await asyncio.sleep(_WAIT_SECONDS)
            await self._tell(link, stay, before)
        await self._tell(link, stay, before, now=True)

    async def _fetch_part(self, link: Link, stay: Stay, part: Part, before: int) -> None:
        """Bring one content; one that comes out damaged is brought once more, from its start."""
        await in_thread(part.resume)
        for last in (False, True):
            if part.have < part.size:
                link.tell(Kind.NEED, Need(part.sha256, part.have))
            while part.have < part.size:
                kind, piece = await _next_piece(link)
                if kind != Kind.DATA or not piece or len(piece) > part.size - part.have:
                    raise BadFrame("the pieces of a model's file are not as it was announced")
                await in_thread(part.add, piece)
                await self._tell(link, stay, before)
            try:
                await in_thread(self._models.keep, stay, part)
            except Damaged:
                if last:
                    raise
                log.warning("a file of %s came damaged: once more", stay.tree.source)
            else:
                return

    async def _tell(self, link: Link, stay: Stay, before: int, *, now: bool = False) -> None:
        """Tell how much is there, now and then. Raises LinkLost for a gateway that is gone."""
        if now or time.monotonic() - self._told_at > _TELL_SECONDS:
            self._told_at = time.monotonic()
            link.tell(Kind.STORED, Stored(before + await in_thread(self._models.bytes_of, stay)))
            await link.drain()

    async def _end(self, stay: Stay) -> None:
        try:
            await in_thread(self._models.end, stay)
        except OSError as error:
            log.warning("a copy of %s may stay: %s", stay.tree.source, error.strerror)


async def _next_piece(link: Link) -> tuple[Kind, bytes]:
    """Wait for what was asked for. Raises LinkLost for a gateway that stands still: others may wait
    for this very content, which they could bring."""
    try:
        async with asyncio.timeout(_SILENT_SECONDS):
            return await link.receive()
    except TimeoutError:
        raise LinkLost(f"nothing has come for {_SILENT_SECONDS:g} s") from None


class Deliveries:
    """Finds the worker that files come for, among those of an agent."""

    def __init__(self, root: str, max_bytes: int | None) -> None:
        """Raises OSError."""
        self.models = NodeModels(Path(root), max_bytes)
        self._workers: dict[str, WorkerModels] = {}

    def expect(self, opened: OpenWorker) -> WorkerModels:
        """Return what holds the files of a worker; its token finds it until it is ended."""
        found = WorkerModels(self.models, opened.node, opened.origin)
        self._workers[opened.token] = found
        return found

    async def end(self, token: str) -> None:
        """Let go of the files of a worker that has ended, or was never expected."""
        if (found := self._workers.pop(token, None)) is not None:
            await found.release()

    async def take(self, link: Link, token: str) -> None:
        """Take the files that a connection brings. Raises BadFrame or LinkLost."""
        if (found := self._workers.get(token)) is None:
            link.tell(Kind.REFUSED, Refused(message="The worker of these files has ended."))
        else:
            await found.take(link)

    async def facts(self, origin: str) -> StoreFacts | None:
        """Return what is stored; None if it cannot be read now."""
        try:
            return await asyncio.to_thread(self.models.facts, origin)
        except OSError as error:
            log.warning("the copies of models could not be counted: %s", error.strerror)
            return None

    async def drop(self, keys: tuple[str, ...], origin: str) -> None:
        """Remove what a gateway has no use for."""
        try:
            await asyncio.to_thread(self.models.drop, keys, origin)
        except OSError as error:
            log.warning("copies of models could not be removed: %s", error.strerror)
