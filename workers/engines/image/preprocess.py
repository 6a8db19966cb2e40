"""Checks jobs and decodes their uploads, off the thread that computes."""

import copy
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from workers.context_length import context_length_error
from workers.engines.base import Refused
from workers.engines.image.long_prompts import MOST_CHUNKS, chunks_of, room_of
from workers.engines.image.pipelines import Pipelines
from workers.engines.image.request import Request, Sources
from workers.protocol import ImageJob

MAX_PIXELS = 64_000_000  #: of an upload; a larger one is not decoded
_FORMATS = ("PNG", "JPEG", "WEBP")


class Preprocessor:
    """Checks the jobs of one pipeline, and opens their images."""

    def __init__(self, pipelines: Pipelines) -> None:
        self._pipelines = pipelines
        # Copies: two threads that use one fast tokenizer get each other's results.
        self._tokenizers = [copy.deepcopy(each) for each in pipelines.tokenizers]

    def prepare(self, job: ImageJob) -> Request:
        """Check a job and decode its images. Raises Refused for what would be cut or ignored."""
        self._pipelines.check(job)
        chunks = self._count_chunks(job.prompt, "prompt")
        if job.negative_prompt is not None:
            chunks = max(chunks, self._count_chunks(job.negative_prompt, "negative_prompt"))
        return Request(job, _sources(job) if job.image is not None else None, chunks)

    def _count_chunks(self, text: str, param: str) -> int:
        """Return in how many chunks a text is encoded.

        Raises Refused for one of too many, and for one that all encoders of a pipeline without
        chunks would cut without a word. A text counts with its marks at both ends.
        """
        longest, chunks = self._pipelines.longest_prompt, 1
        tokens = min((len(each(text).input_ids) for each in self._tokenizers), default=0)
        if self._pipelines.chunks_prompts:
            chunks = len(chunks_of(text, self._tokenizers, longest))
            if chunks <= MOST_CHUNKS:
                return chunks
            longest = MOST_CHUNKS * room_of(longest)
        elif tokens <= longest:
            return 1
        message, details = context_length_error(longest, tokens, max_tokens=None)
        raise Refused("CONTEXT_LENGTH_EXCEEDED", message, param=param, details=details)


def _sources(job: ImageJob) -> Sources:
    assert job.image is not None
    size = (job.width, job.height)
    image = _open(job.image, "image").convert("RGB")
    if job.mask is None:
        return Sources(_fitted(image, size))
    mask = _mask(_open(job.mask, "mask"))
    if mask.size != image.size:
        raise _bad("mask", "must have the size of the image")
    return Sources(_fitted(image, size), mask.resize(size, Image.Resampling.NEAREST))


def _mask(image: Any) -> Any:
    """Return a mask that is white where pixels are to be made; an RGBA image's clear pixels are."""
    if image.has_transparency_data:
        return ImageChops.invert(image.convert("RGBA").getchannel("A"))
    return image.convert("L")


def _open(path: str, param: str) -> Any:
    """Decode a file of one frame. Raises Refused; its size is checked before it is decoded."""
    try:
        with Image.open(Path(path), formats=_FORMATS) as found:
            if found.width * found.height > MAX_PIXELS:
                raise _bad(param, f"has more than {MAX_PIXELS // 1_000_000} megapixels")
            if getattr(found, "n_frames", 1) != 1:
                raise _bad(param, "must be a single picture, not an animation")
            found.load()
            return found.copy()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _bad(param, "is not a picture in PNG, JPEG or WebP") from error


def _fitted(image: Any, size: tuple[int, int]) -> Any:
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def _bad(param: str, what: str) -> Refused:
    return Refused("INVALID_REQUEST", f"'{param}' {what}.", param=param)
