"""Finds the size of the images that a pipeline was made for, in its configs."""

from pathlib import Path
from typing import Any

from model_store.kinds import read_json

_LATENTS = 128  #: of a side; what pipelines take whose transformers do not say it
_LEAST, _MOST = 64, 4096  #: pixels; beyond them the configs mean something else
_MULTIPLE = 8


def own_side(folder: Path) -> int:
    """Return the side in pixels that the library's pipeline takes by default; 0 if it is not told.

    Raises BadFiles for configs that cannot be read.
    """
    unet, transformer, decoder = (_config(folder / part) for part in ("unet", "transformer", "vae"))
    latents = _latents(transformer, _LATENTS) if transformer else _latents(unet, 0)
    side = latents * _pixels_of_a_latent(decoder)
    return side if _LEAST <= side <= _MOST and side % _MULTIPLE == 0 else 0


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return read_json(path) if path.is_file() else {}


def _latents(denoiser: dict[str, Any], default: int) -> int:
    told = denoiser.get("sample_size", default)
    if isinstance(told, list) and told:
        told = told[0]
    return told if isinstance(told, int) and not isinstance(told, bool) else 0


def _pixels_of_a_latent(decoder: dict[str, Any]) -> int:
    """Return the pixels of a latent: each block of the decoder but one doubles the size."""
    blocks = decoder.get("block_out_channels", decoder.get("encoder_block_out_channels"))
    return 1 << (len(blocks) - 1) if isinstance(blocks, list) and 0 < len(blocks) < 8 else 0
