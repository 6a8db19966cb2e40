"""Tells the traits of images."""

from collections.abc import Mapping, Sequence
from sys import getsizeof
from typing import Any

from bitinglip.access.usage.amounts import MILLION, Amounts
from bitinglip.work.traits import Most, Traits, replace
from workers import protocol

_AFFINITY_CHARACTERS = 1024


def megapixels(work: protocol.ImageJob) -> float:
    """Return the megapixels of all images of a job."""
    return len(work.seeds) * work.width * work.height / MILLION


class ImageTraits(Traits[protocol.ImageJob]):
    """Counts megapixels times steps."""

    __slots__ = ()
    output = (protocol.ImageDone,)
    bytes_per_cost = 1 << 20
    guarded = "images"
    makes = "image"
    operation = "image_generation"

    @property
    def choices(self) -> int:
        return len(self.work.seeds)

    def cost(self, _file_bytes: int) -> float:
        return megapixels(self.work) * self.work.steps

    def cost_done(self, final: protocol.Success | protocol.Cancelled) -> float | None:
        if isinstance(final, protocol.Cancelled):
            return megapixels(self.work) * min(final.steps, self.work.steps)
        return None

    def affinity(self) -> str:
        """Return the prompt: an engine encodes it once."""
        return self.work.prompt[:_AFFINITY_CHARACTERS]

    def input_bytes(self) -> int:
        return getsizeof(self.work.prompt) + getsizeof(self.work.negative_prompt)

    def without_input(self) -> protocol.Job:
        return replace(self.work, prompt="", negative_prompt=None)

    def upload_paths(self) -> dict[str, str]:
        found = {"image": self.work.image, "mask": self.work.mask}
        return {name: path for name, path in found.items() if path is not None}

    def most_used(self, _file_bytes: int, _context: int | None, _prompt_bytes: int = 0) -> Most:
        return Most(pixels=len(self.work.seeds) * self.work.width * self.work.height)

    def used(self, events: Sequence[Any], last: protocol.Final | None) -> Amounts:
        """Return the pixels; of images that were cancelled the part of their steps was made.

        Who watches a stream has their previews by then.
        """
        made, pixels = 0, self.work.width * self.work.height
        if isinstance(last, protocol.ImageDone):
            made = len(last.images) * pixels
        elif isinstance(last, protocol.Cancelled):
            told = (each.steps for each in reversed(events) if isinstance(each, protocol.Progress))
            steps = next(told, 0) or self.work.steps
            made = len(self.work.seeds) * pixels * min(last.steps, steps) // steps
        return Amounts(pixels=made)

    def texts(self) -> dict[str, str]:
        return {"prompt": self.work.prompt, "negative_prompt": self.work.negative_prompt or ""}

    def repeatable(self, seeded: bool) -> bool:
        return seeded

    def canonical(self, uploads: Mapping[str, str]) -> protocol.Job:
        return replace(self.work, id="", folder="", **uploads)

    @staticmethod
    def is_whole(done: protocol.ImageDone) -> bool:
        """Return whether the safety checker has made none of the images black."""
        return not any(each.filtered for each in done.images)
