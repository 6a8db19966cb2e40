"""Describes one incarnation of a worker process, as the gateway knows it. Only the
pool writes it."""

import asyncio
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from workers.codes import NOT_GRANTED
from workers.faults import FAULTS, Fault
from workers.framing import FrameReader
from workers.launcher import Handle
from workers.output import Output
from workers.protocol import (
    Activity,
    Cancel,
    Command,
    CopyProgress,
    Final,
    Heartbeat,
    Load,
    LoadFailed,
    LoadProgress,
    Ready,
    Succeeds,
    Working,
)

log = logging.getLogger(__name__)

LOADING = ("starting", "warm", "loading")
SERVING = ("ready", "draining")  #: states in which a worker runs jobs


@dataclass(eq=False)
class Worker:
    handle: Handle
    state: str = "starting"  #: starting, warm, loading, ready, draining, stopped, failed
    id: str = "spare"
    spec: Load | None = None
    ready: Ready | None = None
    heartbeat: Heartbeat | None = None
    cause: str | None = None
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    last_heartbeat: datetime | None = None
    silence: float = 0.0  #: seconds since it said something, while the gateway listened
    waited: float = 0.0  #: seconds since its load made progress, counted alike
    stopped: float = 0.0  #: seconds for which its process was stopped while it loaded or waited
    progress: float = 0.0  #: of its load, as it tells
    seen_progress: float = 0.0  #: the same when progress was seen last, and the bytes it had read
    seen_bytes: int = 0
    copying: CopyProgress | None = None  #: its files come to its node, before it loads them
    activity: Activity | None = None  #: what it is busy with that may be silent for minutes
    has_worked: bool = False  #: a job of its has succeeded
    reader: FrameReader = field(default_factory=FrameReader)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    killed: float | None = None  #: seconds since it was killed first, counted like ``silence``
    stuck: bool = False  #: it was killed and has not ended in time; it is not waited for any more
    load_failure: LoadFailed | None = None
    fault: Fault | None = None  #: the class of what ended it, if it has one
    output: Output = field(init=False)
    outbox: list[Command] = field(default_factory=list)
    #: by job that it was told to cancel and has not ended: seconds since, counted like ``silence``
    cancelled: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.output = Output(lambda line: log.warning("%s: %s", self.id, line))

    @property
    def pid(self) -> int:
        return self.handle.pid

    @property
    def folder(self) -> Path | None:
        """Return the folder that it writes to; None if it has none of its own."""
        return self.handle.folder

    def note_load_failure(self, failure: LoadFailed) -> None:
        """Note why it does not become what it was to be."""
        self.load_failure = failure
        self.fault = FAULTS[failure.fault] if failure.fault else None
        if failure.code == NOT_GRANTED:  # there is no process that would have failed
            self.state = "stopped"

    def note_progress(self, event: CopyProgress | LoadProgress) -> float:
        """Note how its load, or the copying before it, goes on; return that from 0 to 1."""
        if isinstance(event, CopyProgress):
            self.copying = event if event.bytes < event.total else None
            return event.bytes / event.total if self.copying else 0.0
        self.progress, self.copying = event.fraction, None
        return self.progress

    def note_final(self, final: Final) -> None:
        """Note that it has ended a job."""
        self.cancelled.pop(final.id, None)
        self.has_worked = self.has_worked or isinstance(final, Succeeds)

    def note_life(self, sign: Heartbeat | Working) -> None:
        """Take over a heartbeat, and its figures of the worker."""
        if isinstance(sign, Working):
            self.activity = sign.activity
            return
        self.heartbeat = sign
        self.last_heartbeat = datetime.now(UTC)

    async def ends_within(self, seconds: float) -> bool:
        """Wait for its end; return False if it has not come by then."""
        try:
            async with asyncio.timeout(seconds):
                await self.ended.wait()
        except TimeoutError:
            return False
        return True

    def send(self, command: Command) -> None:
        """Send a command to the worker; nothing happens if it has ended.

        What is sent in one turn of the event loop goes as one message: each wakes the worker.
        """
        if isinstance(command, Cancel):
            self.cancelled.setdefault(command.id, 0.0)
        if not self.outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        if isinstance(command, Load):
            self.handle.lend(command)
        self.outbox.append(command)

    def _flush(self) -> None:
        commands, self.outbox = self.outbox, []  # first: a fault must not end all sending
        if not self.ended.is_set():
            self.handle.send(commands)
