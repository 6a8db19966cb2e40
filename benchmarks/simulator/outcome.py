"""Record how one simulated request went, whichever policy served it."""

from dataclasses import dataclass
from typing import Self, assert_never

from workers import protocol

COMPLETED = "completed"


@dataclass(frozen=True, slots=True)
class Outcome:
    wait: float  #: seconds until a worker had it, or until it was given up
    ended: str  #: ``completed``, or the error's code

    @classmethod
    def of(cls, wait: float, final: protocol.Final) -> Self:
        match final:
            case (
                protocol.TextDone()
                | protocol.ImageDone()
                | protocol.SpeechDone()
                | protocol.TranscriptionDone()
                | protocol.EmbeddingDone()
            ):
                return cls(wait, COMPLETED)
            case protocol.Failed(code=code):
                return cls(wait, code)
            case protocol.Cancelled():
                return cls(wait, "CANCELLED")
            case _:
                assert_never(final)


@dataclass(frozen=True, slots=True)
class Sample:
    """Holds one request of the trace."""

    at: float
    key: str
    tier: str
    model: str
    refused: bool  #: at the door, before it waited
    wait: float
    ended: str
    seconds: float  #: from its arrival to its end
