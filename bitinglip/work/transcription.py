"""Tells the traits of transcriptions."""

from collections.abc import Iterator, Mapping, Sequence
from sys import getsizeof
from typing import Any

from bitinglip.access.usage.amounts import MILLION, Amounts
from bitinglip.work.traits import Most, Traits, replace
from workers import protocol

_BYTES_PER_SECOND = 16_000  #: of an audio file of middling quality


class TranscriptionTraits(Traits[protocol.TranscriptionJob]):
    """Counts seconds of sound."""

    __slots__ = ()
    output = (protocol.SegmentDelta, protocol.TranscriptionDone)
    bytes_per_cost = 1 << 16
    guarded = "segments"
    makes = "text"
    operation = "transcription"

    def cost(self, file_bytes: int) -> float:
        return min(self.work.max_seconds, file_bytes / _BYTES_PER_SECOND)

    def cost_done(self, final: protocol.Success | protocol.Cancelled) -> float | None:
        return final.duration if isinstance(final, protocol.TranscriptionDone) else None

    def affinity(self) -> str:
        """Return the file: different files share nothing."""
        return self.work.path

    def input_bytes(self) -> int:
        return getsizeof(self.work.prompt)

    def without_input(self) -> protocol.Job:
        return replace(self.work, prompt=None)

    def upload_paths(self) -> dict[str, str]:
        return {"path": self.work.path}

    def most_used(self, file_bytes: int, _context: int | None, _prompt_bytes: int = 0) -> Most:
        return Most(audio_us=max(1, round(self.cost(file_bytes) * MILLION)))

    def used(self, events: Sequence[Any], last: protocol.Final | None) -> Amounts:
        if isinstance(last, protocol.TranscriptionDone):
            return Amounts(audio_us=round(last.duration * MILLION))
        ends = [each.segment.end for each in events if isinstance(each, protocol.SegmentDelta)]
        return Amounts(audio_us=round(max(ends, default=0.0) * MILLION))

    def texts(self) -> dict[str, str]:
        return {"prompt": self.work.prompt or ""}

    def repeatable(self, seeded: bool) -> bool:  # noqa: ARG002  a transcription has no seed
        return self.work.temperature == 0

    def canonical(self, uploads: Mapping[str, str]) -> protocol.Job:
        return replace(self.work, id="", stream=False, **uploads)

    @staticmethod
    def is_whole(done: protocol.TranscriptionDone) -> bool:
        """Return whether nothing was sampled because a window failed at temperature 0."""
        return all(each.temperature == 0 for each in done.segments)

    @staticmethod
    def pieces(done: protocol.TranscriptionDone) -> Iterator[protocol.JobEvent]:
        for index, segment in enumerate(done.segments):
            yield protocol.SegmentDelta(id="", segment=segment, index=index)
