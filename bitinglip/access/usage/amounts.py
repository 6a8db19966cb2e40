"""Holds amounts of use, in whole numbers, so that sums are exact in any order. Pure."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

MILLION = 1_000_000

#: the units that quotas are in, by their index in ``Units``
NAMES = ("requests", "tokens", "megapixels", "audio_seconds", "gpu_seconds")
REQUESTS, TOKENS, MEGAPIXELS, AUDIO, GPU = range(len(NAMES))
#: what one of a unit is: a request, a token, a million pixels, a million microseconds
SCALES = (1, 1, MILLION, MILLION, MILLION)

Units = tuple[int, int, int, int, int]
NO_UNITS: Units = (0, 0, 0, 0, 0)


class Amounts(NamedTuple):
    """Holds what was used: by one request, or by many together."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    pixels: int = 0  #: of images that were made
    audio_us: int = 0  #: microseconds of sound that was made or heard
    gpu_us: int = 0  #: microseconds of work on a device, times the devices

    @property
    def units(self) -> Units:
        """Return the amounts that quotas count."""
        requests, prompt, completion, pixels, audio_us, gpu_us = self
        return requests, prompt + completion, pixels, audio_us, gpu_us


NOTHING = Amounts()
#: makes some of its six numbers in a third of the time that the class's own constructor takes
amounts: Callable[[tuple[int, int, int, int, int, int]], Amounts] = partial(tuple.__new__, Amounts)


def shown(amounts: Amounts) -> dict[str, Any]:
    """Describe amounts in the units that clients know."""
    return {
        "requests": amounts.requests,
        "prompt_tokens": amounts.prompt_tokens,
        "completion_tokens": amounts.completion_tokens,
        "total_tokens": amounts.prompt_tokens + amounts.completion_tokens,
        "megapixels": amounts.pixels / MILLION,
        "audio_seconds": amounts.audio_us / MILLION,
        "gpu_seconds": amounts.gpu_us / MILLION,
    }


def shown_unit(unit: int, amount: int) -> float:
    """Return an amount of a unit as a number that clients know: 1.5 megapixels, 20 tokens."""
    scale = SCALES[unit]
    return amount if scale == 1 else amount / scale
