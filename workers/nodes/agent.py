"""Serves a gateway on another machine: starts workers here, and tells what devices there are.

It runs jobs for every client that knows its secret. So it listens at one address only, bounds what
clients may do before they have proved that they know it, and opens no file outside the folders it
was given.
"""

import asyncio
import contextlib
import itertools
import logging
import socket
import time
from pathlib import Path

import msgspec

from workers.codes import NOT_GRANTED
from workers.devices import Devices
from workers.devices.host import Host
from workers.devices.probe import probe_cards
from workers.engines.registry import ENGINES, engine_info
from workers.folders import WorkFolders
from workers.framing import BadFrame
from workers.launcher import SpawnedWorker, SpawnLauncher
from workers.nodes.folder import AgentFolder
from workers.nodes.granting import Granting
from workers.nodes.handshake import SECONDS, AgentIdentity, NotTrusted, prove_to_gateway
from workers.nodes.hosted import HostedWorker
from workers.nodes.link import Link, LinkLost, decode, keep_alive
from workers.nodes.messages import (
    FROM_GATEWAY,
    OTHER_VERSION,
    PROTOCOL,
    AgentConfig,
    Drop,
    Holdings,
    Kind,
    NodeFacts,
    Open,
    OpenFiles,
    Opening,
    OpenNode,
    OpenWorker,
    Probe,
    Probed,
    Refused,
)
from workers.nodes.models.intake import Deliveries
from workers.nodes.spare import Spare
from workers.oom_kills import OomKills
from workers.protocol import Confinement

log = logging.getLogger(__name__)

_MOST_CONNECTIONS = 512
_MOST_UNPROVED = 16  #: connections that have not proved that they know the secret
_LOOK_SECONDS = 1.0  #: between two looks at the devices
_TORCH_SECONDS = 300.0  #: between two questions to torch about cards, if there is one
_WARN_SECONDS = 5.0  #: between two lines of the log about connections that were refused


class Agent:
    """Listens for one gateway or several; each connection is the life of what it started."""

    def __init__(self, config: AgentConfig, secret: str, devices: Devices | None = None) -> None:
        """``devices`` are those of this machine by default. Raises OSError."""
        self.roots = config.models if config.store is None else (config.store,)
        self._deliveries: Deliveries | None = None
        if config.store is not None:
            self._deliveries = Deliveries(config.store, config.store_max_bytes)
        self._config = config
        self._secret = secret
        self._folder = AgentFolder(Path(config.folder))
        root = self._folder.root
        self.inputs = root / "inputs"
        self.inputs.mkdir(mode=0o700)
        self._identity = AgentIdentity(root)
        self._devices = devices or Devices.find(
            config.fake, config.cpu_memory_bytes, config.memory_limit
        )
        self._granting = Granting(config, self._devices, self._folder)
        self._launcher = _launcher(config, root, self.inputs)
        self._spare = Spare(self._launcher) if config.spare else None
        self._oom_kills = OomKills()
        self._serial = itertools.count(1)
        self._pids: dict[int, int] = {}  #: processes of workers, by their serial number
        self._unproved: dict[asyncio.Task[None], None] = {}  #: the oldest first
        self._warned = -_WARN_SECONDS
        self._connections: set[asyncio.Task[None]] = set()
        self._facts: NodeFacts | None = None
        self._looked = asyncio.Condition()
        self._look_now = asyncio.Event()

    # ---- for its workers -----------------------------------------------------------------------

    def start(self, spec: OpenWorker, *, fresh: bool) -> tuple[SpawnedWorker, bool]:
        """Return a process, and whether it was the spare. Raises OSError."""
        info = engine_info(spec.engine)
        spare = self._spare if info.preimport and not fresh else None
        if spare is not None and (process := spare.take()) is not None:
            return process, True
        return self._launcher.launch(spec.name, info.preimport, spec.visible_devices), False

    def short_of_ram(self) -> bool:
        """Return True if the kernel has ended processes lately for want of RAM."""
        return self._oom_kills.have_risen()

    def loaded(self) -> None:
        """Note that a model has loaded: the next spare may start."""
        if self._spare is not None:
            self._spare.warm()

    # ---- its life ------------------------------------------------------------------------------

    def listen(self) -> socket.socket:
        """Bind the address of the settings. Raises OSError if none of its ports is free."""
        first, last = self._config.ports
        family = socket.AF_INET6 if ":" in self._config.host else socket.AF_INET
        for port in range(first, max(first, last) + 1):
            listener = socket.socket(family, socket.SOCK_STREAM)
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((self._config.host, port))
                listener.listen(_MOST_UNPROVED)
            except OSError:
                listener.close()
                if port >= last:
                    raise
            else:
                listener.setblocking(False)
                return listener
        raise OSError("no port")  # the loop above runs once at least

    async def serve(self, listener: socket.socket) -> None:
        """Serve until it is cancelled; then end all workers."""
        looks = asyncio.gather(self._look(), self._ask_torch())
        try:
            await self._accept(listener)
        finally:
            listener.close()
            looks.cancel()
            for each in list(self._connections):
                each.cancel()
            await asyncio.gather(looks, *self._connections, return_exceptions=True)
            if self._spare is not None:
                await self._spare.close()
            self._devices.close()
            await asyncio.to_thread(self._folder.remove)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        if self._spare is not None:
            self._spare.warm()
        while True:
            try:
                await asyncio.sleep(0)  # one that is there is taken without: many would halt all
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:
                log.warning("no connection could be taken: %s", error.strerror)
                await asyncio.sleep(1.0)
                continue
            if len(self._connections) >= _MOST_CONNECTIONS:
                sock.close()
                continue
            if len(self._unproved) >= _MOST_UNPROVED:
                # A gateway needs milliseconds to prove itself: who takes longest is a stranger.
                oldest = next(iter(self._unproved))
                del self._unproved[oldest]
                oldest.cancel()
            task = asyncio.create_task(self._connection(sock))
            self._unproved[task] = None
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)
            # Here: one that is cancelled before it begins does nothing of its own.
            task.add_done_callback(lambda _, sock=sock: sock.close())  # type: ignore[misc]

    async def _connection(self, sock: socket.socket) -> None:
        """Serve one connection; nothing that comes by it ends the agent."""
        writer: asyncio.StreamWriter | None = None
        link: Link | None = None
        try:
            try:
                async with asyncio.timeout(SECONDS):
                    reader, writer = await self._encrypt(sock)
                    keep_alive(writer)
                    certificate = self._identity.certificate
                    await prove_to_gateway(reader, writer, self._secret, certificate)
                    link = Link(reader, writer, FROM_GATEWAY)
                    kind, payload = await link.receive()
            finally:
                self._unproved.pop(_this_task(), None)
            if kind != Kind.OPEN:
                raise BadFrame(f"a connection that begins with {kind.name}")
            await self._open(link, payload)
        except (NotTrusted, BadFrame) as error:
            self._warn(str(error))
        except (LinkLost, TimeoutError, OSError):
            pass  # the gateway, or a stranger, is gone
        except Exception:  # the edge of a connection: whatever it was, others go on
            log.exception("a connection has failed")
        finally:
            if link is not None and writer is not None:
                await _close(writer)
            elif writer is not None:
                writer.transport.abort()  # a stranger gets no second of a place

    def _warn(self, why: str) -> None:
        """Log why a connection was refused, at most once a moment: strangers cause it."""
        now = time.monotonic()
        if now - self._warned > _WARN_SECONDS:
            self._warned = now
            log.warning("%s", why)

    async def _encrypt(
        self, sock: socket.socket
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=1 << 18)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol,
            sock,
            ssl=self._identity.context,
            ssl_handshake_timeout=SECONDS,
            ssl_shutdown_timeout=1.0,
        )
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    async def _open(self, link: Link, payload: bytes) -> None:
        if decode(payload, Opening).protocol != PROTOCOL:
            link.tell(Kind.REFUSED, Refused(message=f"It {OTHER_VERSION}."))
            return
        opened: Open = decode(payload, Open)  # type: ignore[arg-type]  # a union is no class
        if isinstance(opened, OpenNode):
            await self._serve_node(link, opened)
        elif isinstance(opened, OpenFiles):
            if self._deliveries is not None:
                await self._deliveries.take(link, opened.token)
        elif opened.engine not in ENGINES:
            link.tell(Kind.REFUSED, Refused(message=f"There is no engine {opened.engine[:40]!r}."))
        else:
            await self._serve_worker(link, opened)

    async def _serve_worker(self, link: Link, opened: OpenWorker) -> None:
        serial = next(self._serial)

        def note(pid: int) -> None:
            self._pids[serial] = pid

        reserving = asyncio.create_task(
            self._granting.reserve(serial, opened, list(self._pids.values()))
        )
        try:
            why = await asyncio.shield(reserving)
            if why is not None:
                self._look_now.set()  # so that its gateway learns what others have
                text = f"The node {opened.node} has no room for {opened.name}: {why}"
                link.tell(Kind.REFUSED, Refused(message=text, code=NOT_GRANTED))
                return
            expect = self._deliveries.expect if self._deliveries is not None else _shared
            await HostedWorker(link, self, opened, serial, note, expect(opened)).run()
        finally:
            self._pids.pop(serial, None)
            await asyncio.wait([reserving])  # which goes on in its thread, whatever ends this
            await self._granting.release(serial)
            if self._deliveries is not None:
                await self._deliveries.end(opened.token)
            self.loaded()  # or it never will; there may be no spare

    # ---- the node ------------------------------------------------------------------------------

    async def _serve_node(self, link: Link, opened: OpenNode) -> None:
        tasks = [
            asyncio.create_task(self._beat(link, opened.beat_seconds)),
            asyncio.create_task(self._tell_facts(link, opened)),
            asyncio.create_task(self._answer(link, opened)),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._granting.forget(opened.gateway)

    async def _beat(self, link: Link, seconds: float) -> None:
        """Send heartbeats, whatever the driver is busy with."""
        while True:
            link.send(Kind.BEAT)
            await link.drain()
            await asyncio.sleep(seconds)

    async def _tell_facts(self, link: Link, opened: OpenNode) -> None:
        told: NodeFacts | None = None
        while True:
            async with self._looked:
                await self._looked.wait_for(lambda: self._facts is not told)  # noqa: B023
                told = self._facts
            assert told is not None
            elsewhere = await asyncio.to_thread(self._granting.elsewhere, opened.gateway)
            store = await self._deliveries.facts(opened.origin) if self._deliveries else None
            link.tell(Kind.FACTS, msgspec.structs.replace(told, elsewhere=elsewhere, store=store))
            await link.drain()

    async def _answer(self, link: Link, opened: OpenNode) -> None:
        while True:
            kind, payload = await link.receive()
            if kind == Kind.HOLDINGS:
                await self._granting.take(opened.gateway, decode(payload, Holdings))
                continue
            if kind == Kind.DROP and self._deliveries is not None:
                await self._deliveries.drop(decode(payload, Drop).keys, opened.origin)
                continue
            if kind != Kind.PROBE:
                raise BadFrame(f"a frame {kind.name} is no gateway's")
            ids = decode(payload, Probe).ids
            known = [each for each in ids if any(each == d.pin for d in self._devices.list())]
            failed = await asyncio.to_thread(probe_cards, known)
            failed |= {each: "there is no such card" for each in ids if each not in known}
            link.tell(Kind.PROBED, Probed(failed))

    async def _look(self) -> None:
        """Read the devices again and again; a read that fails leaves the last one."""
        while True:
            try:
                self._oom_kills.refresh()
                facts = await asyncio.to_thread(self._read, list(self._pids.values()))
                async with self._looked:
                    self._facts = facts
                    self._looked.notify_all()
            except Exception:  # the kernel or the driver does not tell: asked again in a moment
                log.exception("the devices could not be read")
            self._look_now.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._look_now.wait()

    async def _ask_torch(self) -> None:
        """Ask torch, in a process of its own, about cards: NVML does not tell all."""
        while True:
            try:
                await asyncio.to_thread(self._devices.ask_torch)
            except Exception:  # asked again in a while: models go on without
                log.exception("torch could not be asked about the cards")
            await asyncio.sleep(_TORCH_SECONDS)

    def _read(self, pids: list[int]) -> NodeFacts:
        readings = self._devices.read(pids, idle=not pids)
        self._granting.look(readings)
        return NodeFacts(
            devices=self._devices.list(),
            readings=readings,
            problems=dict(self._devices.problems()),
            pressure=self._devices.pressure(),
            note=self._devices.note,
            reports=tuple(self._devices.take_reports()),
        )


def _shared(_opened: OpenWorker) -> None:
    """Expect no files: a worker reads those of the gateway where they are."""


def _launcher(config: AgentConfig, root: Path, inputs: Path) -> SpawnLauncher:
    own = filter(None, [config.secret_file, config.store])
    hidden = (*config.hidden, *own, config.folder)
    confinement = Confinement(
        mode=config.confine,
        inputs=str(inputs),
        caches=str(Path(config.folder) / "caches"),
        hidden=hidden,
        memory_bytes=Host().total_bytes,
    )
    environ = {} if config.perf_boost else {"CUDA_DISABLE_PERF_BOOST": "1"}
    return SpawnLauncher(
        folders=WorkFolders(root / "work"), confinement=confinement, environ=environ
    )


def _this_task() -> "asyncio.Task[None]":
    task = asyncio.current_task()
    assert task is not None
    return task


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(2.0):
            await writer.wait_closed()
    writer.transport.abort()
