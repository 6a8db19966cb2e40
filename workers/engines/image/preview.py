"""Previews: they show an image before it is done, for next to nothing.

The latents, averaged down to a small picture, go through the model's own decoder: a sixteenth of
the decoder's work for 1024 pixels, and right for every model that keeps latents as images.
"""

import io
from typing import Any

import torch
from PIL import Image

_SIDE = 32  #: latents of the longer side that are decoded
_QUALITY = 70
#: those whose latents are images that they take one by one
_DECODERS = ("AutoencoderKL", "AutoencoderTiny")


def why_no_preview(pipe: Any, offload: str) -> str | None:
    """The reason for which previews are refused; None where they are possible."""
    kind = type(pipe.vae).__name__ if getattr(pipe, "vae", None) is not None else ""
    if kind not in _DECODERS:
        return "This model has no previews."
    if offload == "model":
        # The decoder would take the denoiser's place on the card, and back, for each of them.
        return "This model has no previews while its setting image.offload is model."
    return None


@torch.inference_mode()
def preview(pipe: Any, latents: torch.Tensor, width: int, height: int) -> bytes:
    """A small JPEG of the image whose latents these are, with one batch dimension."""
    if latents.ndim == 3:  # packed in patches of two by two
        latents = pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)
    longest = max(latents.shape[-2:])
    if longest > _SIDE:
        rows, columns = (max(1, side * _SIDE // longest) for side in latents.shape[-2:])
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
    """Some decoders overflow in half precision, as their configuration says."""
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
