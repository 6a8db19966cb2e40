"""Tells the traits of speech."""

from collections.abc import Mapping, Sequence
from sys import getsizeof
from typing import Any

from bitinglip.access.usage.amounts import MILLION, Amounts
from bitinglip.work.traits import Most, Traits, replace
from workers import protocol

_CHARACTERS_PER_SECOND = 15  #: of speech at an ordinary pace
_SAMPLE_BYTES = 2


class SpeechTraits(Traits[protocol.SpeechJob]):
    """Counts seconds of sound."""

    __slots__ = ()
    output = (protocol.AudioDelta, protocol.SpeechDone)
    bytes_per_cost = 1 << 20
    guarded = None
    makes = "speech"
    operation = "speech"

    def cost(self, _file_bytes: int) -> float:
        return len(self.work.text) / _CHARACTERS_PER_SECOND

    def cost_done(self, final: protocol.Success | protocol.Cancelled) -> float | None:
        return final.duration if isinstance(final, protocol.SpeechDone) else None

    def affinity(self) -> str:
        """Return the voice: an engine keeps what it has read of it."""
        return f"{self.work.voice}\0{self.work.language}"

    def input_bytes(self) -> int:
        return sum(getsizeof(each) for each in (self.work.text, self.work.instructions) if each)

    def without_input(self) -> protocol.Job:
        """Return the whole message: the usage tells the number of characters of its text."""
        return self.work

    def most_used(self, file_bytes: int, _context: int | None, _prompt_bytes: int = 0) -> Most:
        return Most(audio_us=max(1, round(self.cost(file_bytes) * MILLION)))

    def used(self, events: Sequence[Any], last: protocol.Final | None) -> Amounts:
        seconds = last.duration if isinstance(last, protocol.SpeechDone) else _spoken(events)
        return Amounts(audio_us=round(seconds * MILLION))

    def texts(self) -> dict[str, str]:
        texts = {"text": self.work.text, "instructions": self.work.instructions}
        return {name: text for name, text in texts.items() if text is not None}

    def repeatable(self, seeded: bool) -> bool:
        return seeded

    def canonical(self, uploads: Mapping[str, str]) -> protocol.Job:
        return replace(self.work, id="", folder="", **uploads)


def _spoken(events: Sequence[Any]) -> float:
    """Return the seconds of sound that were handed over."""
    return sum(
        len(each.samples) / _SAMPLE_BYTES / each.sample_rate
        for each in events
        if isinstance(each, protocol.AudioDelta)
    )
