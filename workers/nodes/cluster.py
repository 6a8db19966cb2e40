"""Knows the nodes of a cluster, starts workers on them, and shows their devices as one list."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from workers.folders import WorkFolders
from workers.nodes.devices import ClusterDevices
from workers.nodes.models.source import NOT_COMPARED, ModelSource
from workers.nodes.node import Address, Node
from workers.nodes.remote_worker import RemoteWorker

log = logging.getLogger(__name__)

_FIND_SECONDS = 2.0  #: between two questions for the agents
_NONE_YET = (
    "No node of the cluster answers yet; run 'ray status' to see whether Ray answers and has "
    "nodes, and 'bitinglip doctor' to check workers.ray.address."
)
_GONE = "it has left the cluster; 'ray start' on it brings it back"
_STOP_SECONDS = 0.5  #: between two questions whether the start is to stop
_COLLECT_SECONDS = 5.0  #: between two looks for copies of models that are gone
_FORGET_SECONDS = 600.0  #: after which a node that is gone is not shown any more


class Agents(Protocol):
    """Starts an agent on each machine and says where they listen."""

    async def find(self) -> Mapping[str, Address | str]:
        """Return the agents that there are now, by the names of their nodes, or why a node has
        none. A name has letters, digits and ``._-`` only.

        Raises AgentsLost while that cannot be known.
        """
        ...

    async def close(self) -> None: ...


class AgentsLost(Exception):
    """The program that starts agents does not answer; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """Shows a node as clients see it."""

    name: str
    address: str | None
    state: str  #: joining, well, lost or refused
    reason: str | None
    devices: tuple[str, ...]
    workers: int
    silence: float  #: seconds since it said something
    model_bytes: int | None = None  #: of copies of models that it has; None: it has none of its own


class Cluster:
    """Owns the nodes; implements the launcher of their workers."""

    def __init__(
        self,
        agents: Agents,
        secret: str,
        folders: WorkFolders,
        uploads: Path,
        *,
        heartbeat_timeout: float,
        source: ModelSource | None = None,
    ) -> None:
        """``folders``: of what workers have made, once it has come here; ``uploads``: the folder of
        files that jobs read; ``source``: of the models' files, if nodes get copies of them."""
        self._source = source
        self._agents = agents
        self._secret = secret
        self._gateway = secrets.token_hex(8)  #: what nodes know this run of the gateway by
        self._folders = folders
        self._uploads = uploads
        self._timeout = heartbeat_timeout
        self._nodes: dict[str, Node] = {}
        self._trouble: str | None = None  #: why the agents cannot be asked for
        self._tasks: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()
        self._news = asyncio.Event()  #: a node has told of other copies
        self.devices = ClusterDevices(self)

    # ---- the launcher --------------------------------------------------------------------------

    def launch(
        self, name: str, imports: Sequence[str], visible_devices: str | None
    ) -> RemoteWorker:
        """Return the stand-in for a worker; its Load says on which node the process is started."""
        del imports, visible_devices  # the node decides by the Load: it keeps a spare of its own
        return RemoteWorker(name, self._nodes.get, self._folders, self._uploads, self._source)

    # ---- its life ------------------------------------------------------------------------------

    async def open(
        self, wait_seconds: float, is_stopping: Callable[[], bool] = lambda: False
    ) -> None:
        """Begin to look for nodes; return once all known ones have sent their devices, after the
        time is up, when it is known that there are none, or soon after ``is_stopping`` is true."""
        self._loop = asyncio.get_running_loop()
        self._tasks = [asyncio.create_task(self._find()), asyncio.create_task(self._watch())]
        if self._source is not None:
            self._tasks.append(asyncio.create_task(self._collect(self._source)))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_seconds):
                while not self._is_there() and self._trouble is None and not is_stopping():
                    self._changed.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_STOP_SECONDS):
                            await self._changed.wait()
        if self.trouble is not None and self._trouble is None:  # which was logged as it came
            log.error("%s", self.trouble)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(node.close() for node in self._nodes.values()))
        await self._agents.close()
        self.devices.close()
        await asyncio.sleep(0)  # connections close in the loop's next turn, which may be its last

    # ---- what others ask -----------------------------------------------------------------------

    @property
    def nodes(self) -> Iterable[Node]:
        return tuple(self._nodes.values())

    @property
    def trouble(self) -> str | None:
        """Say why no node is available, and what to do; None if one is."""
        if self._trouble is not None:
            return self._trouble
        if any(node.state == "well" for node in self._nodes.values()):
            return None
        if not self._nodes:
            return _NONE_YET
        reasons = [f"{each.name}: {each.reason}" for each in self._nodes.values() if each.reason]
        return " ".join(["No node of the cluster answers.", *reasons])

    def views(self) -> list[NodeView]:
        """List the nodes as clients see them."""
        return [
            NodeView(
                name=node.name,
                address=node.address.host if node.address else None,
                state=node.state,
                reason=node.reason,
                devices=tuple(each.id for each in self.devices.of(node)),
                workers=node.workers,
                silence=node.silence + (0.0 if node.state == "well" else node.lost_for),
                model_bytes=node.facts.store.bytes if node.facts and node.facts.store else None,
            )
            for node in self.nodes
        ]

    def copies(self) -> dict[str, int]:
        """Return the bytes of models that were copied to each node."""
        told = ((node.name, node.facts.store) for node in self.nodes if node.facts is not None)
        return {name: store.bytes for name, store in told if store is not None}

    def probe(self, ids: Sequence[str]) -> dict[str, str]:
        """Return what is wrong with cards, by their UUIDs; blocks: call it in a thread."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(self._probe(ids), self._loop).result()

    async def _probe(self, ids: Sequence[str]) -> dict[str, str]:
        asked = [
            (node, there)
            for node in self.nodes
            if (there := [each.pin for each in self.devices.of(node) if each.pin in ids])
        ]
        found = await asyncio.gather(*(node.probe(there) for node, there in asked))
        return {card: why for failed in found for card, why in failed.items()}

    # ---- nodes ---------------------------------------------------------------------------------

    async def _find(self) -> None:
        """Connect to new agents, at each interval."""
        while True:
            try:
                self._meet(await self._agents.find())
                self._trouble = None
            except AgentsLost as error:
                self._note_trouble(str(error))
            except Exception:  # asked again in a moment: the nodes that are there go on
                log.exception("the agents of the cluster could not be found")
            await asyncio.sleep(_FIND_SECONDS)

    def _note_trouble(self, why: str) -> None:
        if self._trouble != why:
            log.error("%s", why)
        self._trouble = why
        self._on_change()

    def _meet(self, agents: Mapping[str, Address | str]) -> None:
        for name, found in agents.items():
            if (node := self._nodes.get(name)) is None:
                origin = self._source.origin if self._source is not None else ""
                node = Node(name, self._secret, self._on_change, self._gateway, origin)
                self._nodes[name] = node
            if isinstance(found, Address):
                node.connect(found)
            else:
                node.set_unavailable(found)
        for name, node in list(self._nodes.items()):
            if name in agents or node.state == "well":
                continue
            node.set_unavailable(_GONE)
            if node.lost_for > _FORGET_SECONDS:
                del self._nodes[name]
            self._on_change()

    async def _watch(self) -> None:
        interval = min(1.0, self._timeout / 4)
        while True:
            await asyncio.sleep(interval)
            for node in self.nodes:
                node.tick(interval, self._timeout)

    async def _collect(self, source: ModelSource) -> None:
        """Compare nodes' copies with the store, those of a node that has others at once: loads go
        where their files are, and what the store has no longer is removed."""
        loop = asyncio.get_running_loop()
        all_at = loop.time()
        while True:
            self._news.clear()
            if is_due := loop.time() >= all_at:
                all_at = loop.time() + _COLLECT_SECONDS
            nodes = [each for each in self.nodes if each.state == "well"]
            await self._compare(source, [each for each in nodes if is_due or each.has_news])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(all_at):
                    await self._news.wait()

    async def _compare(self, source: ModelSource, nodes: Sequence[Node]) -> None:
        stores = [node.store for node in nodes]
        try:
            found = await asyncio.to_thread(source.compare, stores)
        except OSError as error:
            log.warning("the store of models cannot be read: %s", error.strerror)
            found = [NOT_COMPARED for _ in nodes]
        for node, store, compared in zip(nodes, stores, found, strict=True):
            if compared.unwanted:
                node.drop(compared.unwanted)
            node.note_copied(store, compared.copied)
        self._changed.set()

    def _on_change(self) -> None:
        self.devices.refresh()
        self._changed.set()
        if any(map(_has_news, self._nodes.values())):
            self._news.set()

    def _is_there(self) -> bool:
        """Return True once each node that is known has come, with what is known of its copies, or
        cannot."""
        nodes = self._nodes.values()
        return bool(nodes) and not any(each.state == "joining" or _has_news(each) for each in nodes)


def _has_news(node: Node) -> bool:
    return node.state == "well" and node.has_news
