"""Places a pipeline's parts, and falls back when the device runs out of memory."""

import platform
from collections.abc import Iterator
from itertools import chain
from typing import Any, Protocol

import torch

from workers.engines.base import Refused
from workers.engines.batch_limit import CAUTIOUS_PASSES, BatchLimit
from workers.engines.image.loading import LoadedPipeline
from workers.engines.torch_env import is_out_of_memory


def place(loaded: LoadedPipeline, offload: str) -> None:
    """Move the pipeline to its device: whole, a model at a time, or a group of layers at a time.

    Raises Refused if the settings ask for what the device cannot do.
    """
    pipe, device = loaded.pipe, loaded.device
    if offload != "none" and device.type == "cpu":
        raise Refused(
            "MODEL_LOAD_FAILED", f"offload: {offload} needs an accelerator; this model is on a CPU."
        )
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload != "none":
        _offload_groups(pipe, device, low_ram=offload == "group_low_ram")
    else:
        pipe.to(device)
    decoder = getattr(pipe, "vae", None)
    if decoder is not None and hasattr(decoder, "enable_slicing"):
        decoder.enable_slicing()  # one image of a pass after another: at full size they are large
    if device.type == "cuda":
        for name in ("unet", "vae"):
            if getattr(pipe, name, None) is not None and offload == "none":
                getattr(pipe, name).to(memory_format=torch.channels_last)


def _offload_groups(
    pipe: Any, device: torch.device, *, low_ram: bool, kernel: str = platform.release()
) -> None:
    """Keep layers in host memory, and bring each to the card when it is its turn.

    With streams the next one comes while one computes, from memory that the card can read itself:
    all weights are copied there at once, with ``low_ram`` each when it is needed. Under WSL there
    is little such memory, so there are no streams. Raises Refused if the system gives none.
    """
    streams = "microsoft" not in kernel.lower()
    try:
        pipe.enable_group_offload(
            onload_device=device,
            offload_device=torch.device("cpu"),
            offload_type="leaf_level",
            use_stream=streams,
            low_cpu_mem_usage=streams and low_ram,
            # What is offloaded keeps its number format, whatever it is cast to; decoders are cast
            # to float32 where they overflow, and they are small.
            exclude_modules=["vae"],
        )
    except (RuntimeError, MemoryError) as error:
        if low_ram or not is_out_of_memory(error):
            raise
        raise Refused(
            "MODEL_LOAD_FAILED",
            "offload: group needs the weights once more in RAM that the card can read (pinned), "
            "and the system does not give so much: set image.offload to group_low_ram or model.",
        ) from error


class Fallback(Protocol):
    """Saves memory, at the cost of time or of a slightly different image."""

    name: str

    def apply(self) -> bool:
        """Switch it on; returns False if the pipeline has no such thing."""
        ...

    def revert(self) -> None: ...


class OomFallbacks:
    """Applies fallbacks in turn, from one that costs nothing to one that changes the image.

    After a while they are reverted, one after another: what took the memory may be gone by then.
    If all of them together do not help, they are reverted at once.
    """

    def __init__(self, pipe: Any, most: int) -> None:
        """``most`` is how many images the settings allow in one pass."""
        self.batch = BatchLimit(most)
        self._steps: list[Fallback] = [_VaeTiling(pipe), _AttentionSlicing(pipe)]  #: left to apply
        self._applied: list[Fallback] = []
        self._good = 0  #: calls that fitted since the last fallback

    @property
    def applied(self) -> tuple[str, ...]:
        """Return the names of the fallbacks under which images are made now."""
        return tuple(fallback.name for fallback in self._applied)

    def next(self, images: int) -> str | None:
        """Apply the next fallback after a call of so many images ran out of memory.

        Returns its name; None if there is no other.
        """
        if images > 1:
            return f"batch_of_{self.batch.halve(images)}"
        self._good = 0
        while self._steps:
            fallback = self._steps.pop(0)
            if fallback.apply():
                self._applied.append(fallback)
                return fallback.name
        self.revert_all()
        return None

    def tile_decoder(self) -> bool:
        """Let the decoder work in tiles from now on; False if it does so, or cannot."""
        if not self._steps or not isinstance(self._steps[0], _VaeTiling):
            return False
        tiling = self._steps.pop(0)
        if not tiling.apply():
            return False
        self._good = 0
        self._applied.append(tiling)
        return True

    def passed(self) -> None:
        """Count a call that fitted into memory."""
        self.batch.passed()
        self._good += 1
        if self._applied and self._good >= CAUTIOUS_PASSES:
            self._revert_last()
            self._good = 0

    def revert_all(self) -> None:
        while self._applied:
            self._revert_last()

    def _revert_last(self) -> None:
        fallback = self._applied.pop()
        fallback.revert()
        self._steps.insert(0, fallback)


class _VaeTiling:
    """Lets the decoder work in tiles of half the size that it is made for.

    Its tiles have the full size by default, so that an image of the usual size would be one tile.
    """

    name = "vae_tiling"

    def __init__(self, pipe: Any) -> None:
        self._decoder: Any = getattr(pipe, "vae", None)

    def apply(self) -> bool:
        if not hasattr(self._decoder, "enable_tiling"):
            return False
        self._decoder.enable_tiling()
        self._scale_tiles(0.5)
        return True

    def revert(self) -> None:
        self._decoder.disable_tiling()
        self._scale_tiles(2.0)

    def _scale_tiles(self, factor: float) -> None:
        for name in ("tile_sample_min_size", "tile_latent_min_size"):
            if hasattr(self._decoder, name):
                setattr(self._decoder, name, int(factor * getattr(self._decoder, name)))


class _AttentionSlicing:
    """Computes attention in slices, where it is not in blocks anyway: in a UNet's processors."""

    name = "attention_slicing"

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def apply(self) -> bool:
        if getattr(self._pipe, "unet", None) is None:
            return False
        self._pipe.enable_attention_slicing()
        return True

    def revert(self) -> None:
        self._pipe.disable_attention_slicing()


class StoredDtypes:
    """Remembers the number formats that the tensors of a pipeline's models were loaded in.

    Pipelines cast a decoder to float32 for a call and back after it, but not after a call that
    failed; then the next call would meet latents and weights of different formats.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._dtypes = {key: tensor.dtype for key, tensor in self._tensors()}

    def restore(self) -> None:
        """Give each tensor its format back; tensors that still have it are not touched."""
        for key, tensor in self._tensors():
            dtype = self._dtypes.get(key, tensor.dtype)
            if tensor.dtype is not dtype:
                tensor.data = tensor.data.to(dtype)

    def _tensors(self) -> Iterator[tuple[tuple[str, str], torch.Tensor]]:
        """Yield all parameters and buffers, each with the names of its model and of itself."""
        for part, model in self._pipe.components.items():
            if isinstance(model, torch.nn.Module):
                for name, tensor in chain(model.named_parameters(), model.named_buffers()):
                    yield (part, name), tensor
