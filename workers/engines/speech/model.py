"""Defines the interface between the engine and a speech model of any family."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from workers.engines.base import Refused
from workers.protocol import SpeechJob

_SHOWN = 12  #: voices that a message names


@dataclass(slots=True, eq=False, kw_only=True)
class Utterance:
    """Holds one sentence that a model speaks; it is done once it has ``samples``.

    Samples have one channel and full scale 1; those that are not finite say that the model's
    output is not a number.
    """

    generator: torch.Generator  #: its own, so that what runs beside it changes nothing
    samples: NDArray[np.float32] | None = None

    @property
    def is_held(self) -> bool:
        """True if the model holds a resource for it that others may wait for."""
        return False


class SpeechModel(Protocol):
    """Speaks sentences, several at a time if the model can.

    ``resolve_voice``, ``fits`` and ``start`` are called by the worker's intake thread.
    """

    sample_rate: int
    dtype: torch.dtype
    has_speed: bool  #: whether ``start`` heeds its ``speed``; else it is refused or stretched

    def resolve_voice(self, job: SpeechJob) -> str | None:
        """Return the voice that a job means. Raises Refused for all that this model cannot do."""
        ...

    def fits(self, text: str) -> bool:
        """True if the model can speak the text in one piece."""
        ...

    def start(self, text: str, voice: str | None, speed: float | None, seed: int) -> Utterance:
        """Make an utterance of a piece of text. Raises Refused if nothing of it can be spoken."""
        ...

    def step(self, utterances: Sequence[Any]) -> None:
        """Compute a part of some utterances that are not done.

        A step that raised may be repeated with fewer of them.
        """
        ...

    def release(self, utterance: Any) -> None:
        """Free what is held for an utterance."""
        ...

    @property
    def rows_used(self) -> int:
        """Count the cache rows that utterances hold: 0 when none is under way."""
        ...


@contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Let a library that knows only the global generator draw from this one.

    If the library fails, the generator is as it was.
    """
    owner: Any = torch.cuda if generator.device.type == "cuda" else torch.random
    kept = owner.get_rng_state()
    owner.set_rng_state(generator.get_state())
    try:
        yield
        generator.set_state(owner.get_rng_state())
    finally:
        owner.set_rng_state(kept)


def unknown_voice(names: Sequence[str]) -> Refused:
    if names:
        shown, more = ", ".join(names[:_SHOWN]), len(names) - _SHOWN
        rest = f" and {more} more, which details lists" if more > 0 else ""
        message = f"This model has no voice of that name; it has {shown}{rest}."
    else:
        message = "This model has one voice only, which has no name."
    details = {"voices": list(names)}
    return Refused("INVALID_REQUEST", message, param="voice", details=details)


def unknown_language(names: Sequence[str]) -> Refused:
    message = f"This model does not speak that language; it speaks {', '.join(names)}."
    details = {"languages": list(names)}
    return Refused("INVALID_REQUEST", message, param="language", details=details)


def check_speed(job: SpeechJob) -> None:
    """Raise Refused for a speed that the model has not, unless its sound may be stretched."""
    if job.speed is not None and not job.stretch:
        raise not_supported("speed")


def not_supported(param: str) -> Refused:
    message = f"'{param}' is not supported for this model."
    return Refused("UNSUPPORTED_PARAMETER", message, param=param)
