"""Estimates the RAM that a model takes beside its devices: at its load, and for weights. Pure.

Weights go straight to a card, and a weight that keeps its number format is copied from the pages of
its file, which the system takes back as it likes. Measured with files of 440 MB and a device that
keeps nothing: no more RAM than before; with another format for a part of an image pipeline, the
part as it is computed, since it is gathered before it is moved.
"""

from dataclasses import dataclass

from bitinglip.scheduling.placement.estimate import LoadConfig, image_parts
from model_store.manifest import Manifest

_MB = 1_000_000
_PROCESS = 600 * _MB  #: a worker with its libraries, before it has a weight
_PAGES = 2048 * _MB  #: of mapped files, at most: those that are being copied
#: Streamed group offload keeps each weight a second time, in memory that the card can read itself;
#: with low RAM it copies a group there when it is needed.
_COPIES = {"model": 1, "group": 2, "group_low_ram": 1}


@dataclass(frozen=True, slots=True)
class RamNeed:
    """Holds the RAM that a model needs that runs on a card, in bytes."""

    loading: int = 0  #: while it loads
    lasting: int = 0  #: for as long as it is loaded


NO_RAM = RamNeed()


def ram_need(manifest: Manifest, load_config: LoadConfig) -> RamNeed:
    """Return the RAM that a load takes beside the memory of its device.

    Nothing on a CPU, whose memory the estimate counts, and on made-up devices.
    """
    if load_config.device != "cuda" or load_config.claimed_bytes is not None:
        return NO_RAM
    if manifest.kind != "image":
        kept = load_config.prefix_ram_bytes if manifest.kind == "text" else 0
        return RamNeed(_PROCESS + kept + min(_largest_file(manifest), _PAGES), kept)
    computed = image_parts(manifest, load_config)
    if copies := _COPIES.get(load_config.offload):
        return RamNeed(_PROCESS + copies * sum(computed), copies * sum(computed))
    largest = max(computed)
    is_converted = sum(computed) != sum(image_parts(manifest, load_config, stored=True))
    return RamNeed(_PROCESS + (largest if is_converted else min(largest, _PAGES)))


def _largest_file(manifest: Manifest) -> int:
    """Return the bytes of the largest file of weights; of an adapter's base the files are not known
    here, so all of it."""
    if manifest.adapter_of is not None:
        return manifest.weight_bytes
    sizes = [file.size for file in manifest.files if file.path.endswith(".safetensors")]
    return max(sizes, default=manifest.weight_bytes)
