"""Checks jobs and decodes their uploads, off the thread that computes."""

import copy
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from workers.context_length import context_length_error
from workers.engines.base import Refused
from workers.engines.image.pipelines import TOKENIZERS, Pipelines
from workers.engines.image.request import Request, Sources
from workers.protocol import ImageJob

MAX_PIXELS = 64_000_000  #: of an upload; a larger one is not decoded
_FORMATS = ("PNG", "JPEG", "WEBP")


class Preprocessor:
    """Checks the jobs of one pipeline, and opens their images."""

    def __init__(self, pipelines: Pipelines) -> None:
        self._pipelines = pipelines
        # Copies: two threads that use one fast tokenizer get each other's results.
        found = [getattr(pipelines.base, name, None) for name in TOKENIZERS]
        self._tokenizers = [copy.deepcopy(each) for each in found if each is not None]

    def prepare(self, job: ImageJob) -> Request:
        """Check a job and decode its images. Raises Refused for what would be cut or ignored."""
        self._pipelines.check(job)
        self._check_length(job.prompt, "prompt")
        if job.negative_prompt is not None:
            self._check_length(job.negative_prompt, "negative_prompt")
        return Request(job, _sources(job) if job.image is not None else None)

    def _check_length(self, text: str, param: str) -> None:
        """Raise Refused for a text that all encoders would cut without a word.

        It counts with its marks at both ends.
        """
        if not self._tokenizers:
            return
        counts = [len(tokenizer(text).input_ids) for tokenizer in self._tokenizers]
        longest = self._pipelines.longest_prompt
        if min(counts) > longest:
            message, details = context_length_error(longest, min(counts), max_tokens=None)
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
