"""A job is a message to a worker in an envelope of what only the gateway knows."""

import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import msgspec

from bitinglip.access.credentials import Credential
from bitinglip.guard.modes import Modes
from bitinglip.scheduling.queue.priority import Priority
from bitinglip.work import traits_of
from bitinglip.work.traits import Traits
from workers import protocol

FileOutput = Literal["b64", "url"]


_RANDOM_DIGITS = 20  #: of an id: 80 bits
_DRAWN_AT_ONCE = 256
_drawn: list[str] = []  #: random parts of ids to come: to draw each takes a system call


def new_task_id() -> str:
    """Make an id that sorts by time and cannot be guessed: 48 bits of milliseconds, 80 random."""
    try:
        digits = _drawn.pop()
    except IndexError:
        drawn = os.urandom(_DRAWN_AT_ONCE * _RANDOM_DIGITS // 2).hex()
        ends = range(_RANDOM_DIGITS, len(drawn), _RANDOM_DIGITS)
        _drawn.extend([drawn[end : end + _RANDOM_DIGITS] for end in ends])
        digits = drawn[:_RANDOM_DIGITS]
    return f"task-{time.time_ns() // 1_000_000:012x}{digits}"


class Claim(NamedTuple):
    """Names what work needs while it goes on: a credential that may run a kind and a model."""

    credential: Credential
    model: str
    kind: str  #: of inference


class Job(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Holds a piece of inference: the message, and what only the gateway knows about it.

    The message holds neither key nor caller, so it can go to a worker as it is.
    """

    work: protocol.Job
    model: str
    key_id: str
    credential: Credential | None = None  #: what its caller came with
    timeout: float = 600.0  #: seconds from now on, waiting included
    priority: Priority = Priority()
    created_at: datetime = msgspec.field(default_factory=lambda: datetime.now(UTC))
    output: FileOutput = "b64"  #: how the answer holds the files that the job makes
    file_bytes: int = 0  #: the size of the audio file that the client sent
    seeded: bool = False  #: the seed of an image or speech job is its client's own
    guard: Modes | None = None  #: what is done about personal data; None: nothing
    asynchronous: bool = False  #: it is a task of the database, and runs again after a restart
    session: str | None = None  #: the client's name for jobs that stay on one replica
    response_id: str | None = None  #: of the background response that it makes
    trace: str | None = None  #: the W3C's traceparent of its request, if that is traced

    if TYPE_CHECKING:  # what differs between kinds of jobs, for this one; it is no field
        traits: ClassVar[Traits[Any]]

    def __post_init__(self) -> None:
        self.__dict__["traits"] = traits_of(self.work)

    @property
    def id(self) -> str:
        return self.work.id

    @property
    def owner(self) -> Credential:
        """Return what the job ends with: the secret or token it came with, or else its key."""
        return self.credential or Credential(self.key_id)

    @property
    def session_id(self) -> tuple[str, str] | None:
        """Return what tells its session from those of other keys."""
        return None if self.session is None else (self.key_id, self.session)

    @property
    def claim(self) -> Claim:
        return Claim(self.owner, self.model, self.kind)

    @property
    def stream(self) -> bool:
        return self.work.stream

    @property
    def kind(self) -> str:
        """Return the kind of inference: text, image, speech, transcription or embedding."""
        return kind_of(type(self.work))

    def streamed(self) -> "Job":
        """Return the same job with all its events, for clients that watch it."""
        work = msgspec.structs.replace(self.work, stream=True)
        return msgspec.structs.replace(self, work=work)


def kind_of(message: type[protocol.Job]) -> str:
    """Return the kind of a message: the tag by which the protocol knows it."""
    return str(message.__struct_config__.tag)
