"""Decodes latents to pixels that are numbers: in float32 where the decoder overflows in float16.

Decoders of some models go beyond 65504 inside, and give black images. Not all say so in their
configuration, and not all pipelines look there.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from workers.engines.torch_env import is_out_of_memory

log = logging.getLogger(__name__)


class DecoderGuard:
    """Stands before a pipeline's ``vae.decode``, so that all calls and previews go through it.

    The weights stay in float16 between the calls: images are encoded in that format too.
    """

    def __init__(self, pipe: Any, model: str) -> None:
        self.overflows = False  #: it has given what is no number in float16, and did not in float32
        self.failed_in = ""  #: the format in which the last decoding of finite latents went wrong
        #: makes room after a decoding has run out of memory; False if there is no way left
        self.make_room: Callable[[], bool] = lambda: False
        self._vae: Any = getattr(pipe, "vae", None)
        self._model = model
        self._previews = False
        if self._vae is not None:
            self._vae.decode = self._decode

    @contextmanager
    def for_previews(self) -> Iterator[None]:
        """Decode previews inside: for them nothing is done that would change the images."""
        self._previews = True
        try:
            yield
        finally:
            self._previews = False

    def _decode(self, latents: torch.Tensor, *values: Any, **named: Any) -> Any:
        """Decode; where memory runs out, once more with room: the steps are not computed again."""
        error: Exception | None = None
        try:
            return self._to_numbers(latents, *values, **named)
        except Exception as caught:
            if self._previews or not is_out_of_memory(caught):
                raise
            error = caught.with_traceback(None)  # it holds on to all that was computed
        if not self.make_room():
            raise error
        return self._to_numbers(latents, *values, **named)

    def _to_numbers(self, latents: torch.Tensor, *values: Any, **named: Any) -> Any:
        self.failed_in = ""
        if self._vae.dtype is torch.float16 and self.overflows:
            return self._in_float32(latents, *values, **named)
        decoded = self._as_it_is(latents, *values, **named)
        if not _gave_no_numbers(latents, decoded):
            return decoded
        self.failed_in = str(self._vae.dtype).removeprefix("torch.")
        if self._vae.dtype is not torch.float16:
            return decoded
        del decoded  # both at once may not fit
        decoded = self._in_float32(latents, *values, **named)
        if _gave_no_numbers(latents, decoded):
            self.failed_in = "float32"
            return decoded
        log.warning("%s: its decoder overflows in float16; it decodes in float32", self._model)
        self.overflows, self.failed_in = True, ""
        return decoded

    def _as_it_is(self, latents: torch.Tensor, *values: Any, **named: Any) -> Any:
        return type(self._vae).decode(self._vae, latents, *values, **named)

    def _in_float32(self, latents: torch.Tensor, *values: Any, **named: Any) -> Any:
        self._vae.to(torch.float32)
        try:
            return self._as_it_is(latents.float(), *values, **named)
        finally:
            self._vae.to(torch.float16)


def finite_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Tell of each row whether all of its numbers are finite. -> [rows] bool"""
    return tensor.isfinite().flatten(1).all(dim=1)


def _gave_no_numbers(latents: torch.Tensor, decoded: Any) -> bool:
    """True if a row of finite latents was decoded to what is not."""
    pixels: torch.Tensor = decoded[0]
    broken = finite_rows(latents) & ~finite_rows(pixels)
    return bool(broken.any())
