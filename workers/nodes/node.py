"""Keeps the connection to one node's agent, as the gateway knows it."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from workers.devices.xid import Report
from workers.framing import BadFrame
from workers.nodes.facts_check import check_facts
from workers.nodes.handshake import NotTrusted
from workers.nodes.link import Link, LinkLost, connect, decode
from workers.nodes.messages import (
    PROTOCOL,
    Drop,
    Holdings,
    Kind,
    NodeFacts,
    Open,
    OpenFiles,
    OpenNode,
    OpenWorker,
    Probe,
    Probed,
    Refused,
    StoreFacts,
)
from workers.nodes.remote_worker import RemoteWorker

log = logging.getLogger(__name__)

NodeState = Literal["joining", "well", "lost", "refused"]

_PROBE_SECONDS = 150.0
_MOST_REPORTS = 256
#: Frames between two looks, and how many of them facts: after a pause those of an hour, or of the
#: minutes that a connection outlives it, may come at once.
_MOST_FRAMES, _MOST_FACTS = 5000, 250
_MOST_OPENING = 8  #: connections at a time: an agent takes some more for strangers


_NO_STORE = StoreFacts(bytes=0)


class Address(NamedTuple):
    """Says where an agent listens."""

    host: str
    port: int


class Node:
    """Is one node of the cluster. Only its own methods change its state, on the event loop."""

    def __init__(
        self,
        name: str,
        secret: str,
        on_change: Callable[[], None],
        gateway: str = "",
        origin: str = "",
    ) -> None:
        """``on_change``: called when it joins, is lost, or tells new facts. ``gateway``: what the
        node tells this gateway by from others that use it; ``origin``: and its store of models."""
        self._origin = origin
        self.name = name
        self.gateway = gateway
        self.address: Address | None = None
        self.state: NodeState = "joining"
        self.reason: str | None = None  #: why it is not well, for the operator
        self.facts: NodeFacts | None = None  #: the last that it has told
        self.reports: deque[Report] = deque(maxlen=_MOST_REPORTS)  #: faults, not taken yet
        self.silence = 0.0  #: seconds since it said something, while the gateway listened
        self.lost_for = 0.0  #: seconds since it was lost, counted alike
        #: models whose files it has whole copies of, as the gateway's store has them now
        self.copied: frozenset[str] = frozenset()
        self.has_news = False  #: it has told of other copies than those that were compared last
        self._frames = 0  #: since the last look
        self._told_facts = 0  #: alike
        self._openings = asyncio.Semaphore(_MOST_OPENING)
        self._secret = secret
        self._on_change = on_change
        self._workers: set[RemoteWorker] = set()
        self._link: Link | None = None
        self._running: asyncio.Task[None] | None = None
        self._probed: asyncio.Future[dict[str, str]] | None = None
        self._told = Holdings()

    @property
    def workers(self) -> int:
        return len(self._workers)

    # ---- for workers ---------------------------------------------------------------------------

    async def open_worker(self, spec: OpenWorker) -> Link:
        """Open a connection for a worker. Raises LinkLost."""
        try:
            return await self._open(spec)
        except NotTrusted as error:  # its agent has ended meanwhile, or is another one now
            raise LinkLost(str(error)) from error

    async def open_files(self, opened: OpenFiles) -> Link:
        """Open a connection that brings files. Raises LinkLost."""
        try:
            return await self._open(opened)
        except NotTrusted as error:
            raise LinkLost(str(error)) from error

    def add(self, worker: RemoteWorker) -> None:
        self._workers.add(worker)

    def discard(self, worker: RemoteWorker) -> None:
        self._workers.discard(worker)

    def tell(self, holdings: Holdings) -> None:
        """Tell it what this gateway holds there, and wishes others to free."""
        if self.state != "well" or self._link is None or holdings == self._told == Holdings():
            return
        self._link.tell(Kind.HOLDINGS, holdings)
        self._told = holdings

    @property
    def store(self) -> StoreFacts:
        """Return what it has told last of the models that were copied to it."""
        return (self.facts.store if self.facts is not None else None) or _NO_STORE

    def note_copied(self, store: StoreFacts, copied: frozenset[str]) -> None:
        """Take note of what came out as what it had told was compared with the gateway's store."""
        self.copied = copied
        self.has_news = _differ(store, self.store)

    def drop(self, keys: tuple[str, ...]) -> None:
        """Tell it which files of models this gateway has no use for any more."""
        if self._link is not None:
            self._link.tell(Kind.DROP, Drop(keys))

    # ---- its life ------------------------------------------------------------------------------

    def connect(self, address: Address) -> None:
        """Connect to its agent, if there is no connection to that one."""
        if self._running is not None and not self._running.done() and address == self.address:
            return
        if self._running is not None and not self._running.done():
            self._lose("its agent has restarted")
            self._running.cancel()
        self.address = address
        self._running = asyncio.create_task(self._run())

    def set_unavailable(self, why: str) -> None:
        """Note why the node has no agent to connect to; a connected node stays connected."""
        if self.state != "well":
            self.reason = f"The node has no agent: {why}."

    def tick(self, interval: float, timeout: float) -> None:
        """Count one interval of silence; after more than ``timeout`` seconds of it the node is
        lost.

        Intervals are counted, not the clock's seconds: a pause of the gateway is no silence of a
        node.
        """
        self._frames = self._told_facts = 0
        if self.state != "well":
            self.lost_for += interval
            return
        self.silence += interval
        if self.silence > timeout:
            if self._running is not None:
                self._running.cancel()  # which ends the connection; why it did is known here
            self._lose(f"its agent has been silent for {timeout:g} s")

    async def probe(self, ids: Sequence[str]) -> dict[str, str]:
        """Return what is wrong with its cards by what CUDA_VISIBLE_DEVICES says of each."""
        if self._link is None or self._probed is not None:
            return dict.fromkeys(ids, "its node does not answer")
        self._probed = asyncio.get_running_loop().create_future()
        try:
            self._link.tell(Kind.PROBE, Probe(tuple(ids)))
            async with asyncio.timeout(_PROBE_SECONDS):
                found = await self._probed
            return {each: found[each] for each in ids if each in found}  # of its own cards only
        except (TimeoutError, LinkLost):
            return dict.fromkeys(ids, "its node does not answer")
        finally:
            self._probed = None

    async def close(self) -> None:
        """End the connection; the agent ends what it runs for this gateway."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        for worker in list(self._workers):
            worker.lose("the cluster is closed")

    async def _run(self) -> None:
        link: Link | None = None
        why = "its agent has closed the connection"
        try:
            link = await self._open(self._first_frame())
            self._link, self.silence, self._told = link, 0.0, Holdings()
            while True:
                self._take(*await link.receive())
                self.silence = 0.0
                self._frames += 1
                if self._frames > _MOST_FRAMES:
                    raise BadFrame("there are too many at once")
        except _NotWanted as error:
            self._refuse(str(error))
            return
        except NotTrusted as error:
            self._refuse(f"Its agent is not trusted: {error}.")
            return
        except LinkLost as error:
            why = str(error)
        except BadFrame as error:
            why = f"its agent has sent a malformed frame ({error})"
        finally:
            if link is not None:
                link.abort()
            if self._link is link:
                self._link = None
                if self._probed is not None and not self._probed.done():
                    self._probed.set_exception(LinkLost("the connection has ended"))
        self._lose(why)

    def _first_frame(self) -> OpenNode:
        return OpenNode(protocol=PROTOCOL, gateway=self.gateway, origin=self._origin)

    async def _open(self, message: Open) -> Link:
        if self.address is None:
            raise LinkLost("it has no agent yet")
        async with self._openings:
            link = await connect(*self.address, self._secret)
        link.tell(Kind.OPEN, message)
        return link

    def _take(self, kind: Kind, payload: bytes) -> None:
        match kind:
            case Kind.BEAT:
                pass
            case Kind.FACTS:
                self._told_facts += 1
                if self._told_facts > _MOST_FACTS:
                    raise BadFrame("there are too many facts at once")
                facts = decode(payload, NodeFacts)
                check_facts(facts)
                before, self.facts = self.store, facts
                self.has_news = self.has_news or _differ(before, self.store)
                known = {each.id for each in facts.devices}
                self.reports += (each for each in facts.reports if each.device in known)
                if self.state != "well":
                    log.info("node %s has joined: %d devices", self.name, len(self.facts.devices))
                    self.state, self.reason, self.lost_for = "well", None, 0.0
                self._on_change()
            case Kind.PROBED:
                found = decode(payload, Probed).failed
                if self._probed is not None and not self._probed.done():
                    self._probed.set_result(found)
            case Kind.REFUSED:
                raise _NotWanted(decode(payload, Refused).message)
            case _:
                raise BadFrame(f"a frame {kind.name} is no node's")

    def _refuse(self, why: str) -> None:
        if self.reason != why:
            log.error("node %s cannot be used: %s", self.name, why)
        self.state, self.reason = "refused", why
        self._on_change()

    def _lose(self, why: str) -> None:
        """Note that it does not answer; its workers end, and no request is blamed for that."""
        if self.state == "well":
            log.warning("node %s is lost: %s", self.name, why)
            self.state, self.lost_for = "lost", 0.0
        self.reason = f"The node does not answer: {why}."
        for worker in list(self._workers):
            worker.lose(f"lost its node {self.name} ({why})")
        self._on_change()


def _differ(one: StoreFacts, other: StoreFacts) -> bool:
    """Return True if other files are there, and not just more of them."""
    return (one.held, one.whole) != (other.held, other.whole)


class _NotWanted(Exception):
    """The agent refuses this gateway; the message says why."""
