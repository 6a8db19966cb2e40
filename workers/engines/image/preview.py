"""Previews show an image before it is done, for a few milliseconds.

The latents, averaged down to a small image, go through the model's own decoder: a sixteenth of
the decoder's work for 1024 pixels, and right for every model that keeps latents as images.
"""

import io
from typing import Any

import torch
from PIL import Image

_MAX_SIDE = 32  #: latents of the longer side that are decoded
_QUALITY = 70
#: decoders that take latents image by image
_DECODERS = ("AutoencoderKL", "AutoencoderTiny")


def preview_refusal(pipe: Any, offload: str) -> str | None:
    """Return the reason for which previews are refused; None if they are possible."""
    kind = type(pipe.vae).__name__ if getattr(pipe, "vae", None) is not None else ""
    if kind not in _DECODERS:
        return "This model has no previews."
    if offload == "model":
        # The decoder would take the denoiser's place on the card, and back, for each of them.
        return "This model has no previews while its setting image.offload is model."
    return None


@torch.inference_mode()
def preview(pipe: Any, latents: torch.Tensor, width: int, height: int) -> bytes:
    """Decode the latents of one image, with their batch dimension, to a small JPEG."""
    if latents.ndim == 3:  # packed in patches of two by two
        latents = pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)
    longest = max(latents.shape[-2:])
    if longest > _MAX_SIDE:
        rows, columns = (max(1, side * _MAX_SIDE // longest) for side in latents.shape[-2:])
        latents = torch.nn.functional.adaptive_avg_pool2d(latents.float(), (rows, columns))
    config = pipe.vae.config
    latents = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
    pixels = _decode(pipe.vae, latents)
    pixels = torch.nan_to_num(pixels[0].float() / 2 + 0.5).clamp(0, 1)
    array = (pixels.permute(1, 2, 0).cpu().numpy() * 255).round().astype("uint8")
    out = io.BytesIO()
    Image.fromarray(array).save(out, format="jpeg", quality=_QUALITY)
    return out.getvalue()


def _decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents, in float32 if the configuration says that half precision overflows."""
    dtype = vae.dtype
    upcast = dtype is torch.float16 and getattr(vae.config, "force_upcast", False)
    if upcast:
        vae.to(torch.float32)
    try:
        pixels: torch.Tensor = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
    finally:
        if upcast:
            vae.to(dtype)
    return pixels
