"""Placement of a pipeline's parts, and the fallbacks when the device runs out of memory."""

from collections.abc import Iterator
from itertools import chain
from typing import Any, Protocol

import torch

from workers.engines.base import Refused
from workers.engines.batch_limit import CAUTIOUS_PASSES, BatchLimit
from workers.engines.image.loading import LoadedPipeline


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


class Measure(Protocol):
    """Something that saves memory, at the cost of time or of a slightly different image."""

    name: str

    def take(self) -> bool:
        """Switch it on; False where the pipeline has no such thing."""
        ...

    def take_back(self) -> None: ...


class OomFallbacks:
    """Measures that are tried in turn: from those that cost nothing to those that change the image.

    After a while everything is taken back, one measure after another: what took the memory may be
    gone by then. What did not help an image is taken back at once.
    """

    def __init__(self, pipe: Any, most: int) -> None:
        """``most`` is how many images the settings allow in one pass."""
        self.batch = BatchLimit(most)
        self._left: list[Measure] = [_Tiling(pipe), _AttentionSlicing(pipe)]
        self._taken: list[Measure] = []
        self._good = 0  #: runs that fitted since the last measure

    @property
    def taken(self) -> tuple[str, ...]:
        """The names of the measures under which images are made now."""
        return tuple(measure.name for measure in self._taken)

    def climb(self, images: int) -> str | None:
        """Take the next measure, after a run of so many images failed; None if there is none."""
        if images > 1:
            return f"batch_of_{self.batch.halve(images)}"
        self._good = 0
        while self._left:
            measure = self._left.pop(0)
            if measure.take():
                self._taken.append(measure)
                return measure.name
        while self._taken:
            self._take_last_back()
        return None

    def passed(self) -> None:
        """Count a run that fitted into memory."""
        self.batch.passed()
        self._good += 1
        if self._taken and self._good >= CAUTIOUS_PASSES:
            self._take_last_back()
            self._good = 0

    def _take_last_back(self) -> None:
        measure = self._taken.pop()
        measure.take_back()
        self._left.insert(0, measure)


class _Tiling:
    """The decoder works in tiles of half the size that it is made for.

    They are of its full size by default, so that an image of the usual size would be one tile.
    """

    name = "vae_tiling"

    def __init__(self, pipe: Any) -> None:
        self._decoder: Any = getattr(pipe, "vae", None)

    def take(self) -> bool:
        if not hasattr(self._decoder, "enable_tiling"):
            return False
        self._decoder.enable_tiling()
        self._scale_tiles(0.5)
        return True

    def take_back(self) -> None:
        self._decoder.disable_tiling()
        self._scale_tiles(2.0)

    def _scale_tiles(self, factor: float) -> None:
        for name in ("tile_sample_min_size", "tile_latent_min_size"):
            if hasattr(self._decoder, name):
                setattr(self._decoder, name, int(factor * getattr(self._decoder, name)))


class _AttentionSlicing:
    """Attention is computed in slices, where it is not in blocks anyway: in a UNet's processors."""

    name = "attention_slicing"

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def take(self) -> bool:
        if getattr(self._pipe, "unet", None) is None:
            return False
        self._pipe.enable_attention_slicing()
        return True

    def take_back(self) -> None:
        self._pipe.disable_attention_slicing()


class StoredDtypes:
    """The number formats that the tensors of a pipeline's models had when it was loaded.

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
        """All parameters and buffers, each with the names of its model and of itself."""
        for part, model in self._pipe.components.items():
            if isinstance(model, torch.nn.Module):
                for name, tensor in chain(model.named_parameters(), model.named_buffers()):
                    yield (part, name), tensor
