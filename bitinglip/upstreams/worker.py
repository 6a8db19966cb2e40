"""Stands in for a worker process: takes the pool's commands, and has other servers run the jobs.

It runs on the gateway's event loop and speaks the protocol of workers, so queueing, cancellation,
accounting and metrics are the same for models here and elsewhere.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import structlog
from msgspec.structs import replace

from bitinglip.upstreams.answer import AnswerReader, BadAnswer
from bitinglip.upstreams.client import UpstreamClient
from bitinglip.upstreams.request import LONG
from bitinglip.upstreams.servers import Server, Servers
from workers.engines.base import Refused
from workers.framing import BadFrame, checked_frame, encode_frame
from workers.protocol import (
    Cancel,
    Cancelled,
    Command,
    EmbeddingJob,
    Event,
    Failed,
    Heartbeat,
    ImageJob,
    Import,
    Imported,
    Load,
    LoadFailed,
    Ready,
    SpeechJob,
    Started,
    Stop,
    TextJob,
    TranscriptionJob,
)

log = structlog.get_logger(__name__)

UpstreamJob = TextJob | EmbeddingJob | TranscriptionJob | SpeechJob | ImageJob

_SLOTS = 64  #: jobs at once where the settings do not say; the servers have queues of their own
_MOST_UNWRITTEN = 1 << 18  #: bytes of events; beyond them answers are not read on


class UpstreamWorker:
    """Implements the pool's handle of a worker."""

    pid = 0  #: of no process
    folder: Path | None = None

    def __init__(self, client: UpstreamClient) -> None:
        self._client = client
        self.events_fd, self._events = os.pipe()
        try:
            self.output_fd, output = os.pipe()
        except OSError:
            os.close(self.events_fd)
            os.close(self._events)
            raise
        os.close(output)  # it writes nothing
        os.set_blocking(self.events_fd, False)
        os.set_blocking(self._events, False)
        os.set_blocking(self.output_fd, False)
        self._loop = asyncio.get_running_loop()
        self._unwritten = bytearray()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._others: set[asyncio.Task[None]] = set()
        self._on_exit: Callable[[], None] | None = None
        self._code: int | None = None
        self._done = 0
        self._tell([Imported()])

    @property
    def servers(self) -> Servers:
        return self._client.servers

    @property
    def is_there(self) -> bool:
        """Return whether it has not ended."""
        return self._code is None

    # ---- the handle ------------------------------------------------------------------------------

    def bytes_read(self) -> int | None:
        return None

    def is_stopped(self) -> bool:
        return False

    def watch(self, on_exit: Callable[[], None]) -> None:
        self._on_exit = on_exit

    def lend(self, spec: Load) -> None:
        """Do nothing: its memory is elsewhere."""

    def send(self, commands: Sequence[Command]) -> None:
        if self._code is not None:
            return
        for each in commands:
            self._take(each)

    def kill(self) -> None:
        self._end(-9)

    def reap(self) -> int | None:
        return self._code

    def close(self) -> None:
        for fd in (self.events_fd, self.output_fd, self._events):
            os.close(fd)

    # ---- commands --------------------------------------------------------------------------------

    def _take(self, command: Command) -> None:
        match command:
            case Load():
                self._spawn(self._load(command))
            case Cancel(id=job_id):
                if (task := self._jobs.get(job_id)) is not None:
                    task.cancel()
            case Stop():
                self._end(0)
            case Import():
                pass  # there is nothing to be imported
            case TextJob() | EmbeddingJob() | TranscriptionJob() | SpeechJob() | ImageJob():
                task = asyncio.create_task(self._run(command))
                self._jobs[command.id] = task
                task.add_done_callback(lambda done: self._ended(command.id, done))
            case _:
                text = "Servers that models stand for are not asked for this."
                self._tell([Failed(id=command.id, code="UNSUPPORTED_PARAMETER", message=text)])

    async def _load(self, spec: Load) -> None:
        try:
            await self._client.open()
        except Exception as error:  # the edge of a load: it has an end, whatever the settings name
            if not isinstance(error, Refused):
                log.exception("an upstream could not be opened")
                error = Refused("MODEL_LOAD_FAILED", "Its server cannot be asked; see the log.")
            self._tell([LoadFailed(code="MODEL_LOAD_FAILED", message=error.message)])
            self._end(1)
            return
        self._tell(
            [
                Ready(
                    slots=spec.max_batch or _SLOTS,
                    max_context=spec.max_context,
                    has_chat_template=True,
                )
            ]
        )
        while True:
            await asyncio.sleep(spec.heartbeat_seconds)
            self._tell([Heartbeat(steps=self._done, in_flight=len(self._jobs), memory_bytes=0)])
            for server in self._client.servers.take_due():
                self._spawn(self._probe(server))

    async def _probe(self, server: Server) -> None:
        if await self._client.probe(server) is None:
            log.info("an upstream server answers again", server=server.url)

    async def _run(self, job: UpstreamJob) -> None:
        final: Event
        frame: bytes | None = None
        reader = AnswerReader(job) if isinstance(job, TextJob) else None
        try:
            self._tell([Started(id=job.id)])
            if isinstance(job, EmbeddingJob):
                final = await self._client.embed(job)
            elif isinstance(job, TranscriptionJob):
                final = await self._client.transcribe(job)
            elif isinstance(job, SpeechJob):
                final = await self._client.speak(job, self._pass_on)
            elif isinstance(job, ImageJob):
                final = await self._client.draw(job)
            else:
                assert reader is not None
                final = await self._client.run(job, reader, self._pass_on)
            large = reader.text > LONG if reader else not isinstance(job, SpeechJob | ImageJob)
            check = partial(checked_frame, [final])
            frame = await asyncio.to_thread(check) if large else check()
        except asyncio.CancelledError:
            prompt, made = (0, 0) if reader is None else reader.used
            final = Cancelled(id=job.id, prompt_tokens=prompt, completion_tokens=made)
        except BadFrame as error:
            text = (
                f"The answer of the server that this model stands for cannot be passed on: {error}"
            )
            final = Failed(id=job.id, code="INFERENCE_FAILED", message=text)
        except Refused as error:
            prompt, made = (0, 0) if reader is None else reader.used
            failed = error.final(job.id)
            final = replace(failed, prompt_tokens=prompt, completion_tokens=made)
        except Exception:  # the edge of a job: each has a final event, whatever the server sends
            log.exception("an upstream's answer could not be used")
            text = "The answer of the server that this model stands for could not be used."
            final = Failed(id=job.id, code="INFERENCE_FAILED", message=text)
        self._done += 1
        self._write(frame or encode_frame([final]))

    def _ended(self, job_id: str, task: "asyncio.Task[None]") -> None:
        """Forget a job; one that was cancelled before its first step has had no final event."""
        self._jobs.pop(job_id, None)
        if task.cancelled():
            self._tell([Cancelled(id=job_id)])

    def _spawn(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.create_task(work)
        self._others.add(task)
        task.add_done_callback(self._others.discard)

    def _end(self, code: int) -> None:
        """End all that runs, and tell the pool once."""
        if self._code is not None:
            return
        self._code = code
        for task in (*self._jobs.values(), *self._others):
            task.cancel()
        self._loop.remove_writer(self._events)
        self._unwritten.clear()
        if self._on_exit is not None:
            self._loop.call_soon(self._on_exit)

    # ---- events ----------------------------------------------------------------------------------

    async def _pass_on(self, events: list[Event]) -> None:
        """Write a server's events once the pipe has room for them. Raises BadAnswer."""
        try:
            frame = checked_frame(events)
        except BadFrame as error:
            raise BadAnswer(f"The upstream's answer has another form: {error}.") from error
        self._write(frame)
        await self._has_room.wait()

    def _tell(self, events: list[Event]) -> None:
        self._write(encode_frame(events))

    def _write(self, frame: bytes) -> None:
        if self._code is not None:
            return
        waits = bool(self._unwritten)
        self._unwritten += frame
        if not waits:
            self._write_some()
        if len(self._unwritten) > _MOST_UNWRITTEN:
            self._has_room.clear()

    def _write_some(self) -> None:
        """Write as much as the pipe has room for; the pool reads it in a later turn of this
        loop."""
        with contextlib.suppress(BlockingIOError):
            while self._unwritten:
                del self._unwritten[: os.write(self._events, self._unwritten)]
        if self._unwritten:
            self._loop.add_writer(self._events, self._write_some)
        else:
            self._loop.remove_writer(self._events)
        if len(self._unwritten) <= _MOST_UNWRITTEN:
            self._has_room.set()
