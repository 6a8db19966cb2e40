"""Declares the traits of jobs: what the gateway asks of every kind of inference."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import msgspec

from bitinglip.access.usage.amounts import Amounts
from workers import protocol

J = TypeVar("J", bound=protocol.Job)
#: What the guard checks of a job's events: choices of text, segments of a transcript, or flagged
#: images. None: they pass as they are.
Guarded = Literal["choices", "segments", "images"] | None

_EVENT_BYTES = 64 << 20  #: of any job's events; beside it, some for each unit of its cost
_OF_ANY = (protocol.Started, protocol.Progress, protocol.Failed, protocol.Cancelled)


class Most(NamedTuple):
    """Holds what a job may use at most."""

    tokens: int = 0
    pixels: int = 0
    audio_us: int = 0


class Traits(ABC, Generic[J]):
    """Tells what differs between kinds of jobs: costs, inputs, events, guard and cache. Pure.

    A new kind gets a class in a module of its own and a branch in each function of the package.
    Costs have a unit for each kind: tokens of text, megapixels times steps of images, seconds of
    audio. Memory is counted in bytes as Python keeps them: one character of a string takes up to
    four.
    """

    __slots__ = ("work",)

    output: ClassVar[tuple[type, ...]]  #: events of this kind only: its output and its success
    event_types: ClassVar[frozenset[type]]  #: all that a sound worker sends for a job
    bytes_per_cost: ClassVar[int]  #: that its events hold for each unit of its cost
    guarded: ClassVar[Guarded]

    makes: ClassVar[str | None]  #: what traces call its output; None: they have no word for it

    def __init__(self, work: J) -> None:
        self.work = work

    def __init_subclass__(cls) -> None:
        cls.event_types = frozenset((*_OF_ANY, *cls.output))

    # ---- traces ----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def operation(self) -> str:
        """Return what the job does, as OpenTelemetry's conventions call it where they do."""

    @property
    def choices(self) -> int:
        """Return the number of outputs for one prompt."""
        return 1

    # ---- scheduling ------------------------------------------------------------------------------

    @abstractmethod
    def cost(self, file_bytes: int) -> float:
        """Estimate what the job will take. ``file_bytes``: the size of its audio file."""

    @abstractmethod
    def cost_done(self, final: protocol.Success | protocol.Cancelled) -> float | None:
        """Return what the job took in the end; None where its final event does not tell."""

    @abstractmethod
    def affinity(self) -> str:
        """Return what is the same for jobs that a worker's caches make cheaper together."""

    def most_event_bytes(self, cost: float) -> float:
        """Return how many bytes all events of a job of this cost may hold, at the most."""
        return _EVENT_BYTES + cost * self.bytes_per_cost

    # ---- inputs ----------------------------------------------------------------------------------

    @abstractmethod
    def input_bytes(self) -> int:
        """Count what the client sent and the gateway keeps until the job has ended."""

    @abstractmethod
    def without_input(self) -> protocol.Job:
        """Return the message of an ended job, without what nothing asks for any more."""

    def upload_paths(self) -> dict[str, str]:
        """Return the paths of the files that a client sent, by the message's fields."""
        return {}

    # ---- usage -----------------------------------------------------------------------------------

    @abstractmethod
    def most_used(self, file_bytes: int, context: int | None, prompt_bytes: int = 0) -> Most:
        """Return what the job may use at most, or of seconds what it is expected to use.

        ``file_bytes``: the size of its audio file; ``context``: the most tokens its model takes;
        ``prompt_bytes``: of the longest text that its model puts before an input.
        """

    @abstractmethod
    def used(self, events: Sequence[Any], last: protocol.Final | None) -> Amounts:
        """Return what was made, by a worker's last event and by what it had handed over."""

    def tokens(self, events: Sequence[Any], last: protocol.Final | None) -> tuple[int, int]:
        """Return the tokens of the prompt and those sampled; before the end those handed over."""
        if isinstance(last, protocol.Cancelled | protocol.Failed) and last.prompt_tokens:
            return last.prompt_tokens, last.completion_tokens
        return self.handed_over(events)

    def handed_over(self, events: Sequence[Any]) -> tuple[int, int]:
        """Return the tokens of the prompt and those sampled, as far as events have told."""
        started = next((each for each in events if isinstance(each, protocol.Started)), None)
        return started.prompt_tokens if started else 0, 0

    # ---- guard -----------------------------------------------------------------------------------

    @abstractmethod
    def texts(self) -> dict[str, str]:
        """Return what a client wrote that a model will read, by the field of the request."""

    def with_texts(self, texts: Mapping[str, str]) -> protocol.Job:
        """Return the message with these texts in place of its own; others stay."""
        return replace(self.work, **texts)

    # ---- cache -----------------------------------------------------------------------------------

    @abstractmethod
    def repeatable(self, seeded: bool) -> bool:
        """Return whether the same request would have the same answer.

        ``seeded``: the seed of an image or speech job is its client's own.
        """

    @abstractmethod
    def canonical(self, uploads: Mapping[str, str]) -> protocol.Job:
        """Return the message without what changes no output.

        ``uploads`` are the digests of its files. Text and transcriptions are the same in a stream
        and in one body. Images and speech are not: only a stream brings previews and pieces of
        sound.
        """

    @staticmethod
    def is_whole(_done: Any) -> bool:
        """Return whether a success is an answer that a repeat would have, too."""
        return True

    @staticmethod
    def pieces(_done: Any) -> Iterable[protocol.JobEvent]:
        """Return the output of a stream for an answer that came in one body."""
        return ()


def replace(work: protocol.Job, **fields: Any) -> protocol.Job:
    """Return a message with other values in these fields."""
    changed: protocol.Job = msgspec.structs.replace(work, **fields)
    return changed
