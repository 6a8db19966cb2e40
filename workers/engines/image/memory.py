"""Where the parts of a pipeline lie, and what is tried when the device has not enough memory."""

from typing import Any

import torch

from workers.engines.base import Refused
from workers.engines.image.loading import LoadedPipeline

_CONTEXT_BYTES = 500 * 1024 * 1024


def place(loaded: LoadedPipeline, offload: str) -> None:
    """Bring the pipeline to its device: whole, a model at a time, or a group of layers at a time.

    Raises Refused where the settings ask for what the device cannot do.
    """
    pipe, device = loaded.pipe, loaded.device
    if offload != "none" and device.type == "cpu":
        raise Refused(
            "MODEL_LOAD_FAILED", f"offload: {offload} needs an accelerator; this model is on a CPU."
        )
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "group":
        pipe.enable_group_offload(
            onload_device=device,
            offload_device=torch.device("cpu"),
            offload_type="leaf_level",
            use_stream=True,
        )
    else:
        pipe.to(device)
    decoder = getattr(pipe, "vae", None)
    if decoder is not None and hasattr(decoder, "enable_slicing"):
        decoder.enable_slicing()  # one image of a pass after another: at full size they are large
    if device.type == "cuda":
        for name in ("unet", "vae"):
            if getattr(pipe, name, None) is not None and offload == "none":
                getattr(pipe, name).to(memory_format=torch.channels_last)


class Ladder:
    """What is tried in turn, from what costs nothing to what costs time or looks a little other.

    Each measure stays: what did not fit once will not fit the next time.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._most: int | None = None
        self._rungs = [self._tile_decoder, self._slice_attention]

    def batch(self, most: int) -> int:
        """How many images go into one pass."""
        return most if self._most is None else min(most, self._most)

    def climb(self, images: int) -> str | None:
        """Take the next measure, after a pass of so many images failed; None if there is none."""
        if images > 1:
            self._most = images // 2
            return f"batch_of_{self._most}"
        while self._rungs:
            measure = self._rungs.pop(0)()
            if measure is not None:
                return measure
        return None

    def _tile_decoder(self) -> str | None:
        decoder = getattr(self._pipe, "vae", None)
        if decoder is None or not hasattr(decoder, "enable_tiling"):
            return None
        decoder.enable_tiling()
        return "vae_tiling"

    def _slice_attention(self) -> str | None:
        """Only where attention is not computed in blocks anyway, as in a UNet's own processors."""
        if getattr(self._pipe, "unet", None) is None:
            return None
        self._pipe.enable_attention_slicing()
        return "attention_slicing"


def is_out_of_memory(error: Exception) -> bool:
    """CUDA has an exception of its own; a CPU allocation that fails is a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def peak_bytes() -> int:
    """What the allocator has taken at most since it was last asked, and the context."""
    peak = torch.cuda.max_memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    return peak + _CONTEXT_BYTES
