"""Stands in for a worker process that runs on another machine, under the agent there.

The pool sees what it sees of a process here: pipes, an exit, a kill. What comes by the connection
is written into the pipes; while they are full nothing more is read, so that the worker waits.
"""

import asyncio
import contextlib
import functools
import logging
import os
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from workers.devices.device import id_there
from workers.faults import NODE_LOST, RAM
from workers.folders import WorkFolders
from workers.framing import (
    BadFrame,
    decode_command,
    decode_commands,
    encode_commands,
    encode_frame,
    join_commands,
    split_commands,
)
from workers.launcher import End
from workers.nodes.expected_files import ExpectedFiles
from workers.nodes.files import IncomingFiles, NotKept, send_file
from workers.nodes.job_files import inputs_of, unsendable
from workers.nodes.link import AT_ONCE, Link, LinkLost, decode, set_done
from workers.nodes.messages import (
    PROTOCOL,
    Kind,
    Launched,
    OpenFiles,
    OpenWorker,
    ProcessEnd,
    ProcessState,
    Refused,
)
from workers.nodes.models.sender import Sender
from workers.nodes.models.source import ModelSource
from workers.protocol import Command, CopyProgress, Event, Imported, Job, Load, LoadFailed

log = logging.getLogger(__name__)

_KILLED = -9
_UNREACHED = 1


class WorkerNode(Protocol):
    """Is the node that a worker runs on, as far as the worker needs it."""

    @property
    def name(self) -> str: ...
    @property
    def gateway(self) -> str: ...
    async def open_worker(self, spec: OpenWorker) -> Link:
        """Open a connection for a worker. Raises LinkLost."""
        ...

    async def open_files(self, opened: OpenFiles) -> Link:
        """Open a connection that brings files. Raises LinkLost."""
        ...

    def add(self, worker: "RemoteWorker") -> None: ...
    def discard(self, worker: "RemoteWorker") -> None: ...


class RemoteWorker:
    """Implements the pool's handle of a worker."""

    def __init__(
        self,
        name: str,
        find_node: Callable[[str], WorkerNode | None],
        folders: WorkFolders,
        uploads: Path,
        source: ModelSource | None = None,
    ) -> None:
        """``find_node`` returns the node of a load by its name; ``source``: of the models' files
        that are copied there, if nodes do not share them. Raises OSError."""
        self._source = source
        self._models_mark = os.fsencode(source.root) if source is not None else b""
        self._sender: Sender | None = None
        self._launched = asyncio.Event()
        self._copied = 0  #: bytes of files that have come to its node
        self._copy_told: asyncio.Task[None] | None = None
        self.pid = 0  #: on its node, once it has one
        self.end: End | None = None
        self._name = name
        self._find_node = find_node
        self._folders = folders
        self._uploads = uploads
        self._uploads_mark = os.fsencode(uploads)
        self.events_fd, self._events = os.pipe()
        self.output_fd, self._output = os.pipe()
        for fd in (self.events_fd, self._events, self.output_fd, self._output):
            os.set_blocking(fd, False)
        self.folder: Path | None = self._make_folder()
        self._files = IncomingFiles(self.folder)  #: what it has made
        self._expected = ExpectedFiles()
        self._link: Link | None = None
        self._unsent: deque[bytes] = deque()
        self._sending: asyncio.Task[None] | None = None
        self._running: asyncio.Task[None] | None = None
        self._passing = asyncio.Lock()
        self._state = ProcessState(None, False)
        self._code: int | None = None
        self._killed = False
        self._closed = False
        self._on_exit: Callable[[], None] | None = None
        os.write(self._events, encode_frame([Imported()]))

    # ---- the handle ------------------------------------------------------------------------------

    def bytes_read(self) -> int | None:
        if not self._copied:
            return self._state.bytes_read
        return self._copied + (self._state.bytes_read or 0)

    def is_stopped(self) -> bool:
        return self._state.stopped

    def watch(self, on_exit: Callable[[], None]) -> None:
        self._on_exit = on_exit

    def lend(self, spec: Load) -> None:
        """Begin on the node of the load, which is sent next; memory of this machine is not lent."""
        if self._running is None and self._code is None:
            self._running = asyncio.create_task(self._run(spec))

    def send(self, commands: Sequence[Command]) -> None:
        if self._code is not None:
            return
        command = encode_commands(commands)
        self._expected.sent(command)
        at_once = len(command) <= AT_ONCE and not self._names_files(command)
        if at_once and self._link is not None and self._sending is None:
            self._link.send(Kind.COMMANDS, command)
            return
        self._unsent.append(command)
        self._send_on()

    def kill(self) -> None:
        if self._killed or self._code is not None:
            return
        self._killed = True
        if self._link is not None:
            self._link.send(Kind.KILL)
        elif self._running is None:
            self._finish(End(_KILLED))
        else:
            self._running.cancel()

    def lose(self, why: str) -> None:
        """End it because its node does not answer any more."""
        if self._link is not None:
            self._link.abort()
        self._finish(self._lost(why))
        if self._running is not None:
            self._running.cancel()

    def reap(self) -> int | None:
        return self._code

    def close(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
        if self._running is not None:
            self._running.cancel()
        self._closed = True
        loop = asyncio.get_running_loop()
        for fd in (self._events, self._output):
            loop.remove_writer(fd)
        for fd in (self.events_fd, self.output_fd, self._events, self._output):
            os.close(fd)
        if self.folder is not None:
            self._folders.remove(self.folder)

    # ---- its life ------------------------------------------------------------------------------

    async def _run(self, spec: Load) -> None:
        """Have the node start the process, and take what it says until it has ended."""
        node = self._find_node(spec.node)
        if node is None:
            self._finish(self._lost(f"found no node {spec.node!r}"))
            return
        node.add(self)
        link: Link | None = None
        token = secrets.token_hex(8)
        if self._source is not None:
            told = functools.partial(self._tell_copied, node.name)
            self._sender = Sender(self._source, node, token, told)
        try:
            opened = OpenWorker(
                protocol=PROTOCOL,
                gateway=node.gateway,
                node=node.name,
                name=self._name,
                engine=spec.engine,
                visible_devices=spec.visible_devices,
                reserves={id_there(each): size for each, size in spec.reserves.items()},
                ram=spec.ram,
                origin=self._source.origin if self._source is not None else "",
                token=token,
            )
            link = self._link = await node.open_worker(opened)
            self._send_on()
            while self._code is None:
                await self._take(*await link.receive())
        except LinkLost as error:
            self._finish(self._lost(f"lost the connection to its node {node.name} ({error})"))
        except BadFrame as error:
            self._finish(End(_KILLED, f"wrote a malformed frame ({error})"))
        except asyncio.CancelledError:
            self._finish(End(_KILLED))
            raise
        except Exception:  # the edge of a worker: whatever it was, the pool hears of an end
            log.exception("%s: its connection has failed", self._name)
            self._finish(End(_KILLED, "sent what could not be processed"))
        finally:
            self._files.close()
            node.discard(self)
            if link is not None:
                link.abort()

    async def _take(self, kind: Kind, payload: bytes) -> None:
        match kind:
            case Kind.EVENTS:
                self._expected.told(payload)
                await self._pass_on(self._events, payload)
            case Kind.OUTPUT:
                await self._pass_on(self._output, payload)
            case Kind.STATE:
                self._state = decode(payload, ProcessState)
            case Kind.FILE | Kind.DATA:
                if kind == Kind.FILE:
                    self._expected.check(payload)
                try:
                    await self._files.take(kind, payload)
                except NotKept as error:  # its job fails for want of it, and no other
                    log.warning("%s: %s", self._name, error)
            case Kind.LAUNCHED:
                self.pid = decode(payload, Launched).pid
                self._launched.set()
            case Kind.REFUSED:
                refused = decode(payload, Refused)
                failed = LoadFailed(code=refused.code, message=refused.message)
                await self._pass_on(self._events, encode_frame([failed]))
                self._finish(End(_UNREACHED))
            case Kind.END:
                end = decode(payload, ProcessEnd)
                cause, fault = (RAM.cause, RAM) if end.short_of_ram else (end.cause, None)
                self._finish(End(end.code, cause, fault))
            case _:
                raise BadFrame(f"a frame {kind.name} is no worker's")

    async def _pass_on(self, fd: int, data: bytes) -> None:
        """Write into a pipe as it has room; the pool reads it on this event loop.

        One at a time: what the node tells and what is told here come from two tasks.
        """
        view = memoryview(data)
        async with self._passing:
            while view:
                try:
                    view = view[os.write(fd, view) :]
                except BlockingIOError:
                    await self._writable(fd)

    async def _writable(self, fd: int) -> None:
        loop = asyncio.get_running_loop()
        free: asyncio.Future[None] = loop.create_future()
        loop.add_writer(fd, set_done, free)
        try:
            await free
        finally:
            if not self._closed:  # then the number may be another file's
                loop.remove_writer(fd)

    def _lost(self, why: str) -> End:
        return End(_KILLED) if self._killed else End(_KILLED, why, NODE_LOST)

    def _finish(self, end: End) -> None:
        """Tell the pool of the end, once."""
        if self._code is not None:
            return
        self._code = _KILLED if end.code is None else end.code
        self.end = end
        self._unsent.clear()
        if self._on_exit is not None:
            asyncio.get_running_loop().call_soon(self._on_exit)

    # ---- commands --------------------------------------------------------------------------------

    def _names_files(self, command: bytes) -> bool:
        return self._uploads_mark in command or self._names_models(command)

    def _names_models(self, command: bytes) -> bool:
        return bool(self._models_mark) and self._models_mark in command

    def _send_on(self) -> None:
        if self._link is not None and self._sending is None and self._unsent:
            self._sending = asyncio.create_task(self._send_unsent(self._link))
            self._sending.add_done_callback(self._sent)

    def _sent(self, task: "asyncio.Task[None]") -> None:
        self._sending = None
        if task.cancelled():
            return
        if (error := task.exception()) is None:
            self._send_on()  # what came in between
            return
        log.error("%s: what it reads could not be sent", self._name, exc_info=error)
        if self._link is not None:
            self._link.abort()
        self._finish(End(_KILLED, "could not be sent what its requests read"))

    async def _send_unsent(self, link: Link) -> None:
        """Send commands in their order, each after the files that it names."""
        with contextlib.suppress(LinkLost):  # its end is told by the side that reads
            while self._unsent:
                command = self._unsent.popleft()
                if self._names_models(command):
                    command = await self._with_models(command)
                if command and self._uploads_mark in command:
                    command = await self._with_files(link, command)
                if command:
                    await link.send_long(Kind.COMMANDS, command)

    async def _with_models(self, command: bytes) -> bytes:
        """Copy the models' files that commands name to the node; return the commands without those
        for which that cannot be done, whose failure is told."""
        assert self._sender is not None
        await self._launched.wait()
        commands = decode_commands(command)
        able, ended = await self._sender.bring(commands)
        if ended:
            await self._tell_ends(ended)
            if any(isinstance(each, LoadFailed) for each in ended):
                self.kill()
        if len(able) == len(commands):
            return command
        return encode_commands(able) if able else b""

    def _tell_copied(self, node: str, have: int, total: int) -> None:
        self._copied = max(self._copied, have)
        if self._copy_told is None or self._copy_told.done() or have == total:
            frame = encode_frame([CopyProgress(node, have, total)])
            self._copy_told = asyncio.create_task(self._pass_on(self._events, frame))

    async def _with_files(self, link: Link, command: bytes) -> bytes:
        """Send the uploaded files that jobs read; return the commands without the jobs for which
        that cannot be done, whose failure is told. Raises LinkLost."""
        left: list[msgspec.Raw] = []
        refused: list[Event] = []
        for each in split_commands(command):
            failure = None
            if self._names_files(bytes(each)):
                failure = await self._unsent_files(link, decode_command(each))
            if failure is None:
                left.append(each)
            else:
                refused.append(failure)
        if not refused:
            return command
        await self._tell_ends(refused)
        return join_commands(left) if left else b""

    async def _tell_ends(self, ended: list[Event]) -> None:
        """Tell the gateway of what ended before it reached the node, which makes no files of it."""
        frame = encode_frame(ended)
        self._expected.told(frame)
        await self._pass_on(self._events, frame)

    async def _unsent_files(self, link: Link, job: Command) -> Event | None:
        """Send the uploaded files that a job reads; return its failure if one cannot be sent."""
        if not isinstance(job, Job):
            return None
        for path in dict.fromkeys(map(Path, inputs_of(job))):
            if path.parent == self._uploads and not await send_file(link, path):
                return await asyncio.to_thread(unsendable, job, path)
        return None

    def _make_folder(self) -> Path | None:
        """Make the folder for what the worker makes. On a full disk it has none."""
        try:
            return self._folders.make()
        except OSError as error:
            log.warning("%s: it has no folder for its results: %s", self._name, error.strerror)
            return None
