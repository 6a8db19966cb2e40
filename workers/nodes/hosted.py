"""Relays between one worker process of an agent's machine and the gateway that it works for."""

import asyncio
import contextlib
import logging
import operator
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from workers.codes import DRIVER_STARTED
from workers.framing import (
    BadFrame,
    FrameReader,
    FrameSplitter,
    decode_commands,
    encode_commands,
    encode_frame,
)
from workers.launcher import SpawnedWorker
from workers.nodes.files import IncomingFiles, NotKept, send_file
from workers.nodes.job_files import (
    inputs_of,
    is_within,
    load_refusal,
    results_of,
    with_files,
    with_models,
)
from workers.nodes.link import Link, LinkLost, set_done
from workers.nodes.messages import Kind, Launched, OpenWorker, ProcessEnd, ProcessState
from workers.nodes.models.intake import WorkerModels
from workers.output import last_bytes
from workers.protocol import (
    Command,
    Ends,
    Event,
    Failed,
    ImageJob,
    Imported,
    Job,
    Load,
    LoadFailed,
    OfJob,
    Ready,
    SpeechJob,
    TextJob,
)

log = logging.getLogger(__name__)

_READ_BYTES = 1 << 16
_STATE_SECONDS = 1.0


class Host(Protocol):
    """Starts processes: the agent, as far as its workers need it."""

    @property
    def inputs(self) -> Path: ...
    @property
    def roots(self) -> tuple[str, ...]: ...
    def start(self, spec: OpenWorker, *, fresh: bool) -> tuple[SpawnedWorker, bool]:
        """Return a process, and whether it was the spare. Raises OSError."""
        ...

    def short_of_ram(self) -> bool: ...
    def loaded(self) -> None:
        """Note that a model has loaded: the next spare may start."""
        ...


class HostedWorker:
    """Runs one worker for a gateway, from its request to the end of the process."""

    def __init__(
        self,
        link: Link,
        host: Host,
        spec: OpenWorker,
        serial: int,
        note_pid: Callable[[int], None],
        models: WorkerModels | None = None,
    ) -> None:
        """``serial`` tells its files from other workers'; ``note_pid`` is told each process;
        ``models``: what the gateway copies; None: its files are at the gateway's paths."""
        self._models = models
        self._link = link
        self._host = host
        self._spec = spec
        self._prefix = f"{serial}-"
        self._note_pid = note_pid
        self._process: SpawnedWorker | None = None
        self._was_spare = False
        self._load: bytes | None = None  #: as it was sent on, for another process
        self._jobs: set[str] = set()  #: those that run and read or make files
        self._inputs: dict[str, list[str]] = {}  #: files by job that it reads
        self._uses: Counter[str] = Counter()  #: jobs by file
        self._files = IncomingFiles(host.inputs, self._prefix)
        self._missing: set[str] = set()  #: files that could not be kept here
        self._loras: set[str] = set()  #: folders of LoRAs that jobs may name
        self._imported = False
        self._loading = True
        self._cause: str | None = None

    async def run(self) -> None:
        """Run until the process has ended or the gateway is gone. Raises BadFrame, LinkLost."""
        try:
            fresh = False
            while await self._run_process(fresh=fresh):
                fresh = True  # the spare's libraries had started the driver
        finally:
            self._files.close()
            for name in list(self._uses):
                self._remove(name)

    async def _run_process(self, *, fresh: bool) -> bool:
        """Run a process to its end; True if another one is to take its place."""
        try:
            self._process, self._was_spare = self._host.start(self._spec, fresh=fresh)
        except OSError as error:
            cause = f"could not be started on {self._spec.node} ({error.strerror})"
            self._link.tell(Kind.END, ProcessEnd(code=1, cause=cause))
            return False
        process, ended = self._process, asyncio.Event()
        self._imported = False
        process.watch(ended.set)
        self._note_pid(process.pid)
        self._link.tell(Kind.LAUNCHED, Launched(process.pid))
        if self._load is not None:
            process.send_encoded(self._load)
        relay = _Relay(self._link, process, self._pass_on)
        tasks = [
            asyncio.create_task(self._listen()),
            asyncio.create_task(relay.events()),
            asyncio.create_task(relay.output()),
            asyncio.create_task(self._tell_state(process)),
        ]
        again = False
        try:
            again = await self._until_end(ended, tasks)
        finally:
            process.kill()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await ended.wait()
            code = process.reap()
            if not again:
                with contextlib.suppress(BadFrame, LinkLost):
                    await relay.rest()
            process.close()
        if not again:
            short = code == -9 and self._cause is None and self._host.short_of_ram()
            self._link.tell(Kind.END, ProcessEnd(code=code, short_of_ram=short, cause=self._cause))
        return again

    async def _until_end(self, ended: asyncio.Event, tasks: "list[asyncio.Task[None]]") -> bool:
        """Wait for the end of the process or of what listens to it; True for a process too late
        for its cards. Raises what the gateway's connection ended with."""
        listen, events = tasks[0], tasks[1]
        end = asyncio.create_task(ended.wait())
        try:
            await asyncio.wait({listen, events, end}, return_when=asyncio.FIRST_COMPLETED)
            if listen.done():
                if not listen.cancelled() and (error := listen.exception()):
                    raise error
                return False  # it was told to end: no other takes its place
            if events.done() and not events.cancelled() and (error := events.exception()):
                if isinstance(error, _TooLate):
                    return True
                if not isinstance(error, BadFrame):
                    raise error
                self._cause = f"wrote a malformed frame ({error})"
        finally:
            end.cancel()
        return False

    async def _tell_state(self, process: SpawnedWorker) -> None:
        while True:
            await asyncio.sleep(_STATE_SECONDS)
            self._link.tell(Kind.STATE, ProcessState(process.bytes_read(), process.is_stopped()))

    # ---- down --------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Take what the gateway sends; returns when it has the process killed."""
        while True:
            kind, payload = await self._link.receive()
            if kind == Kind.KILL:
                return
            if kind in (Kind.FILE, Kind.DATA):
                await self._take_file(kind, payload)
            elif kind == Kind.COMMANDS:
                self._take(payload)
            else:
                raise BadFrame(f"a frame {kind.name} is no gateway's")

    async def _take_file(self, kind: Kind, payload: bytes) -> None:
        try:
            name = await self._files.take(kind, payload)
        except NotKept as error:  # its job fails, and no other
            log.warning("%s: %s", self._spec.name, error)
            self._missing.add(error.name)
            return
        if name is not None:
            self._missing.discard(name)
            self._uses.setdefault(name, 0)

    def _take(self, payload: bytes) -> None:
        assert self._process is not None
        try:
            told = decode_commands(payload)
        except Exception as error:  # nonsense has many names
            raise BadFrame("commands do not decode") from error
        commands = told
        if self._models is not None:
            commands = [with_models(each, self._models.local, self._models.lent) for each in told]
        able = [each for each in commands if not self._refuses(each)]
        changed = [self._placed(command) for command in able]
        if commands and not changed:
            return
        same = len(able) == len(told) and all(map(operator.is_, changed, told))
        payload = payload if same else encode_commands(changed)
        loads = [each for each in commands if isinstance(each, Load)]
        if loads:
            roots, node = self._host.roots, self._spec.node
            refusals = (load_refusal(each, node, roots) for each in loads)
            if (why := next(filter(None, refusals), None)) is not None:
                failed = LoadFailed(code="MODEL_LOAD_FAILED", message=why)
                self._link.send(Kind.EVENTS, encode_frame([failed]))
                self._process.kill()
                return
            self._load = payload
        self._process.send_encoded(payload)

    def _refuses(self, command: Command) -> bool:
        """Return True for a job that cannot be run here; its failure is told."""
        if not isinstance(command, Job):
            return False
        failed = self._without_files(command) or self._without_lora(command)
        if failed is not None:
            self._link.send(Kind.EVENTS, encode_frame([failed]))
        return failed is not None

    def _without_files(self, job: Job) -> Failed | None:
        """Fail a job whose files could not be kept here."""
        names = {os.path.basename(path) for path in inputs_of(job)} if self._missing else set()
        if not self._missing & names:
            return None
        self._missing -= names
        for name in names:
            if not self._uses.get(name):
                self._remove(name)
        text = f"The node {self._spec.node} could not keep the files of the request: is it full?"
        return Failed(id=job.id, code="DISK_FULL", message=text)

    def _without_lora(self, job: Job) -> Failed | None:
        """Fail a job that names a LoRA outside the folders that models are read from."""
        path = job.lora.path if isinstance(job, TextJob) and job.lora is not None else None
        if not path or path in self._loras:  # empty: it has gone, which the worker says
            return None
        if not is_within(path, self._host.roots):
            text = f"The node {self._spec.node} may not read the LoRA from where its files are."
            return Failed(id=job.id, code="INFERENCE_FAILED", message=text)
        self._loras.add(path)
        return None

    def _placed(self, command: Command) -> Command:
        """Return a command with files of this machine, and note what its job needs."""
        if not isinstance(command, Job):
            return command
        names = [os.path.basename(path) for path in inputs_of(command)]
        if names or isinstance(command, ImageJob | SpeechJob):
            self._jobs.add(command.id)
        if names:
            self._inputs[command.id] = names
            self._uses.update(names)
        assert self._process is not None
        return with_files(command, self._local, str(self._process.folder or ""))

    def _local(self, path: str) -> str:
        return str(self._host.inputs / f"{self._prefix}{os.path.basename(path)}")

    # ---- up ----------------------------------------------------------------------------------

    async def _pass_on(self, frames: list[bytes]) -> None:
        """Send events to the gateway, and before them the files that they name."""
        ready = bytearray()
        if not self._imported and frames:
            self._imported = True
            if FrameReader().feed(frames[0]) == [Imported()]:
                frames = frames[1:]  # the gateway was told so at once
        for frame in frames:
            for event in self._looked_at(frame):
                await self._before(event)
            if len(ready) + len(frame) > _READ_BYTES:
                self._link.send(Kind.EVENTS, bytes(ready))
                ready.clear()
            ready += frame
        if ready:
            self._link.send(Kind.EVENTS, bytes(ready))
        await self._link.drain()

    def _looked_at(self, frame: bytes) -> list[Event]:
        """Return the events of a frame if something has to be done for one. Raises BadFrame.

        While a model loads there are few, and the process may be one to replace.
        """
        if self._loading or self._jobs:
            return FrameReader().feed(frame)
        return []

    async def _before(self, event: Event) -> None:
        if isinstance(event, LoadFailed) and event.code == DRIVER_STARTED and self._was_spare:
            raise _TooLate
        if isinstance(event, Ready) and self._loading:
            self._loading = False
            self._host.loaded()
        if not isinstance(event, OfJob) or event.id not in self._jobs:
            return
        folder = self._process.folder if self._process is not None else None
        for name, size in results_of(event):
            if folder is not None and os.sep not in name:
                await send_file(self._link, folder / name, size)
                with contextlib.suppress(OSError):  # there is none
                    (folder / name).unlink()
        if isinstance(event, Ends):
            self._jobs.discard(event.id)
            for name in self._inputs.pop(event.id, ()):
                self._uses[name] -= 1
                if self._uses[name] <= 0:
                    self._remove(name)

    def _remove(self, name: str) -> None:
        self._uses.pop(name, None)
        with contextlib.suppress(OSError):
            (self._host.inputs / f"{self._prefix}{name}").unlink()


class _TooLate(Exception):
    """The process cannot choose its cards any more."""


class _Relay:
    """Reads a process's pipes."""

    def __init__(
        self, link: Link, process: SpawnedWorker, pass_on: Callable[[list[bytes]], Awaitable[None]]
    ) -> None:
        self._link = link
        self._process = process
        self._pass_on = pass_on
        self._splitter = FrameSplitter()

    async def events(self) -> None:
        """Pass on whole frames of events until the pipe ends. Raises BadFrame, LinkLost."""
        while data := await _read(self._process.events_fd):
            if frames := self._splitter.feed(data):
                await self._pass_on(frames)

    async def output(self) -> None:
        while data := await _read(self._process.output_fd):
            self._link.send(Kind.OUTPUT, data)
            await self._link.drain()

    async def rest(self) -> None:
        """Pass on what a process that has ended left in its pipes. Raises BadFrame, LinkLost."""
        for data in last_bytes(self._process.output_fd):
            self._link.send(Kind.OUTPUT, data)
        for data in last_bytes(self._process.events_fd):
            if frames := self._splitter.feed(data):
                await self._pass_on(frames)


async def _read(fd: int) -> bytes:
    """Read what is in a non-blocking pipe, once there is something; empty at its end."""
    while True:
        try:
            return os.read(fd, _READ_BYTES)
        except BlockingIOError:
            await _readable(fd)


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    there: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, set_done, there)
    try:
        await there
    finally:
        loop.remove_reader(fd)
