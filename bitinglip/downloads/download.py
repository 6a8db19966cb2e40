"""Describes a download as the server keeps it: what was asked for, by which key, and its
progress."""

import secrets
import time
from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec

from model_store.hub.messages import Planned, Progressed, Task
from model_store.hub.retries import pause_before

Priority = Literal["low", "normal", "high"]
State = Literal["queued", "running", "completed", "failed", "cancelled"]
RANKS: dict[Priority, int] = {"high": 0, "normal": 1, "low": 2}  #: the smallest goes first
RESUMABLE = ("failed", "cancelled")


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Says what is asked for; two that are equal are one download."""

    repo: str
    name: str  #: of the model in the store
    task: Task = "pull"
    revision: str | None = None
    include: tuple[str, ...] = ()
    allow_pickles: bool = False


class Requester(msgspec.Struct, frozen=True):
    """Names the key that asked, as the audit log names it."""

    key_id: str
    name: str = ""
    models: tuple[str, ...] | None = None  #: globs of those that it is for; None: all


class File(msgspec.Struct):
    """Tells the size of a file, and what has come of it, in bytes."""

    bytes_total: int
    bytes_done: int = 0


class Fault(msgspec.Struct, frozen=True):
    """Says why a download failed; ``code`` is the contract's."""

    code: str
    message: str


class Download(msgspec.Struct, kw_only=True):
    """Describes a download; times are seconds of Unix time."""

    id: str
    wanted: Wanted
    requester: Requester
    priority: Priority
    created_at: datetime
    queued_at: float  #: when it was asked for last
    state: State = "queued"
    started_at: datetime | None = None
    finished_at: datetime | None = None
    bytes_done: int = 0
    bytes_total: int | None = None
    files: dict[str, File] = {}
    error: Fault | None = None
    commit: str | None = None  #: that the revision stood for, once it is there
    kind: str | None = None
    changes: dict[str, list[str]] = {}
    notes: tuple[str, ...] = ()
    waits: bool = False  #: for another program's pull of the same
    hub_problem: str | None = None  #: why it waits for the hub, while it does
    retry_at: datetime | None = None  #: when it asks the hub again
    failing_since: float | None = None  #: since when the hub has brought nothing
    tries: int = 0  #: since then

    @property
    def ended(self) -> bool:
        return self.finished_at is not None

    @property
    def place(self) -> tuple[int, float]:
        """Return what orders the queue: the smallest goes first."""
        return RANKS[self.priority], self.queued_at

    @property
    def fraction(self) -> float | None:
        """Return how much is there, from 0 to 1; None before that is known."""
        return self.bytes_done / self.bytes_total if self.bytes_total else None

    def queue(self, requester: Requester, priority: Priority) -> None:
        """Let it wait for its turn, for the first time or again."""
        self.requester, self.priority = requester, priority
        self.queued_at, self.finished_at, self.error = time.time(), None, None
        self.wait()

    def wait(self) -> None:
        """Let it wait in the place that it has, also if it ran before a stop of the server."""
        self.state, self.started_at, self.waits = "queued", None, False
        self.hub_problem = self.retry_at = self.failing_since = None
        self.tries = 0

    def start(self) -> None:
        self.state, self.started_at = "running", datetime.now(UTC)
        self.hub_problem = self.retry_at = None

    def postpone(self, problem: str, retry_for: float) -> float | None:
        """Let it wait for a hub that does not answer; return for how many seconds.

        None once the hub has brought nothing for ``retry_for`` seconds: then it has failed.
        """
        now = time.time()
        if self.failing_since is None or self.failing_since > now:
            self.failing_since, self.tries = now, 0
        pause = pause_before(self.tries, self.failing_since + retry_for - now)
        if pause is None:
            return None
        self.tries += 1
        self.state, self.started_at, self.waits = "queued", None, False
        self.hub_problem = problem
        self.retry_at = datetime.now(UTC) + timedelta(seconds=pause)
        return pause

    @property
    def waits_for(self) -> str | None:
        """Return what it waits for, if that is not its turn."""
        if self.hub_problem is not None:
            return f"the hub, which is asked again soon: {self.hub_problem}"
        return "another program that downloads it" if self.waits else None

    def plan(self, planned: Planned, notes: tuple[str, ...] = ()) -> None:
        """Take over what will come; ``notes`` are the server's, beside those of the hub."""
        self.waits, self.notes = False, (*planned.notes, *notes)
        self.bytes_total, self.bytes_done = planned.bytes_total, planned.bytes_done
        self.files = {
            path: File(size, planned.done.get(path, 0)) for path, size in planned.files.items()
        }

    def progress(self, progressed: Progressed) -> int:
        """Note what has come; return by how much it grew in all."""
        grown = max(0, progressed.bytes_done - self.bytes_done)
        self.bytes_done += grown
        if grown:
            self.failing_since, self.tries = None, 0
        for path, done in progressed.files.items():
            if (file := self.files.get(path)) is not None:
                file.bytes_done = max(file.bytes_done, done)
        return grown

    def end(self, state: State, error: Fault | None, moment: datetime) -> None:
        self.state, self.error, self.waits = state, error, False
        self.hub_problem = self.retry_at = None
        self.finished_at = moment
        if state == "completed":
            self.bytes_done = self.bytes_total = self.bytes_total or self.bytes_done
            for file in self.files.values():
                file.bytes_done = file.bytes_total


def new_download(wanted: Wanted, requester: Requester, priority: Priority) -> Download:
    """Make a download that waits; its id sorts by time and cannot be guessed."""
    stamp = time.time_ns() // 1_000_000
    return Download(
        id=f"dl_{stamp:012x}{secrets.token_hex(6)}",
        wanted=wanted,
        requester=requester,
        priority=priority,
        created_at=datetime.now(UTC),
        queued_at=time.time(),
    )
