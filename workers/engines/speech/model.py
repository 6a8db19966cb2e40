"""The interface between the engine and a speech model, whatever its family."""

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
    """One sentence on its way; it is done once it has ``samples`` (one channel, full scale 1).

    Samples that are not finite say that the model's output is not a number.
    """

    generator: torch.Generator  #: its own, so that what runs beside it changes nothing
    samples: NDArray[np.float32] | None = None

    @property
    def is_held(self) -> bool:
        """True if the model keeps something for it that others may be waiting for."""
        return False


class SpeechModel(Protocol):
    """Says sentences, several at a time where the model can.

    ``voice_of``, ``fits`` and ``utter`` are called by the worker's intake thread.
    """

    sample_rate: int
    dtype: torch.dtype

    def voice_of(self, job: SpeechJob) -> str | None:
        """The voice that a job means; raises Refused for all that this model cannot do."""
        ...

    def fits(self, text: str) -> bool:
        """True if the model can say the text in one piece."""
        ...

    def utter(self, text: str, voice: str | None, speed: float | None, seed: int) -> Utterance:
        """A piece of text as something to step; raises Refused where nothing of it can be said."""
        ...

    def step(self, utterances: Sequence[Any]) -> None:
        """Go on with these, which are not done, for a while. A step that raised may be made again
        with fewer of them."""
        ...

    def leave(self, utterance: Any) -> None:
        """Give back what is held for it."""
        ...

    @property
    def rows_used(self) -> int:
        """Count the cache rows that utterances hold: 0 when none is on its way."""
        ...


@contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Let a library that knows only the global generator draw from this one, which is as it was
    if that fails."""
    places: Any = torch.cuda if generator.device.type == "cuda" else torch.random
    kept = places.get_rng_state()
    places.set_rng_state(generator.get_state())
    try:
        yield
        generator.set_state(places.get_rng_state())
    finally:
        places.set_rng_state(kept)


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


def not_supported(param: str) -> Refused:
    message = f"'{param}' is not supported for this model."
    return Refused("UNSUPPORTED_PARAMETER", message, param=param)
