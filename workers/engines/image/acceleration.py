"""Compiles a denoiser or caches its steps; what does not work refuses the load."""

import inspect
from typing import Any

import torch

from workers.engines.activity import busy_with
from workers.engines.torch_env import fault_of, load_failed
from workers.protocol import ImageOptions

_WARM_UP_STEPS = 2
_MIN_SIDE = 64
_THRESHOLD = 0.08  #: change of the first block below which the others' result is taken again


def speed_up(pipe: Any, options: ImageOptions, most_images: int) -> None:
    """Compile the denoiser's blocks or cache its steps. Raises Refused if the model cannot."""
    denoiser = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
    if options.step_cache == "first_block":
        _cache_steps(denoiser)
    if options.compile:
        _compile(pipe, denoiser, most_images)


def _cache_steps(denoiser: Any) -> None:
    from diffusers import FirstBlockCacheConfig

    if not hasattr(denoiser, "enable_cache"):
        raise load_failed("step_cache is not possible with this model: it has no cache of blocks.")
    denoiser.enable_cache(FirstBlockCacheConfig(threshold=_THRESHOLD))


def _compile(pipe: Any, denoiser: Any, most_images: int) -> None:
    """Compile block by block: blocks are alike, so it takes a part of a model's time."""
    if not getattr(denoiser, "_repeated_blocks", None):
        raise load_failed("compile is not possible with this model: it has no repeated blocks.")
    denoiser.compile_repeated_blocks(fullgraph=True, dynamic=True)
    try:
        with busy_with("compile"):
            _warm_up(pipe, most_images)
    except Exception as error:
        if fault_of(error) is not None:
            raise
        raise load_failed(f"The model does not compile ({type(error).__name__}).") from error


def trial(
    pipe: Any, *, images: int = 1, width: int = _MIN_SIDE, height: int = _MIN_SIDE
) -> torch.Tensor:
    """Draw images, small ones by default; return their pixels. Raises what the pipeline raises."""
    pixels = pipe(
        prompt=[""] * images,
        width=width,
        height=height,
        num_inference_steps=_WARM_UP_STEPS,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    return torch.as_tensor(pixels)


def _warm_up(pipe: Any, most_images: int) -> None:
    """Compute the shapes that the compiler tells apart, so that no request waits for it.

    It makes one of dimensions that are equal in the first call: after a square it would compile
    again for the first image that is none. And it compiles for a batch of one by itself, which
    is one image without guidance; two images stand for all larger batches.
    """
    factor = int(pipe.vae_scale_factor)
    side = max(int(getattr(pipe, "default_sample_size", 0) or 0) * factor, _MIN_SIDE)
    has_guidance = "guidance_scale" in inspect.signature(type(pipe).__call__).parameters
    for images in range(1, min(most_images, 2) + 1):
        pipe(
            prompt=[""] * images,
            width=side,
            height=side // 64 * 48,
            num_inference_steps=_WARM_UP_STEPS,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
            **({"guidance_scale": 1.0} if has_guidance and images == 1 else {}),
        )
