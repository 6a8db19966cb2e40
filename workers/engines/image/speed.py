"""What makes a denoiser faster where the settings ask for it; tried out before it is relied on."""

from typing import Any

import torch

from workers.engines.image.loading import failed
from workers.protocol import ImageOptions

_WARM_UP_STEPS = 2
_LEAST_SIDE = 64
_THRESHOLD = 0.08  #: change of the first block below which the others' result is taken again


def speed_up(pipe: Any, options: ImageOptions) -> None:
    """Compile the denoiser's blocks, cache steps. Raises Refused where the model cannot."""
    denoiser = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
    if options.step_cache == "first_block":
        _cache_steps(denoiser)
    if options.compile:
        _compile(pipe, denoiser)


def _cache_steps(denoiser: Any) -> None:
    from diffusers import FirstBlockCacheConfig

    if not hasattr(denoiser, "enable_cache"):
        raise failed("step_cache is not possible with this model: it has no cache of blocks.")
    denoiser.enable_cache(FirstBlockCacheConfig(threshold=_THRESHOLD))


def _compile(pipe: Any, denoiser: Any) -> None:
    """Block by block, since those are alike: a small part of the time that a whole model takes."""
    if not getattr(denoiser, "_repeated_blocks", None):
        raise failed("compile is not possible with this model: it has no repeated blocks.")
    denoiser.compile_repeated_blocks(fullgraph=True)
    try:
        _warm_up(pipe)
    except Exception as error:
        raise failed(f"The model does not compile ({type(error).__name__}).") from error


def _warm_up(pipe: Any) -> None:
    """Draw at the model's own size: compilers look at shapes."""
    side = int(getattr(pipe, "default_sample_size", 0) or 0) * int(pipe.vae_scale_factor)
    pipe(
        prompt="",
        width=max(side, _LEAST_SIDE),
        height=max(side, _LEAST_SIDE),
        num_inference_steps=_WARM_UP_STEPS,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    )
