"""Chooses how much of an image model stays out of its device's memory, where no setting says."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from bitinglip.scheduling.placement.estimate import OFFLOADS, LoadConfig
from bitinglip.scheduling.placement.footprints import MemoryEstimate
from bitinglip.scheduling.placement.ledger import DeviceCapacity
from bitinglip.scheduling.placement.ram import ram_need
from bitinglip.settings.models import ImageModel
from model_store.manifest import Manifest
from workers.devices import CPU

USUAL_SIDE = 1024  #: pixels of an image's side where settings and files say nothing


def image_load(
    manifest: Manifest,
    load_config: LoadConfig,
    own: ImageModel,
    capacities: Callable[[], Sequence[DeviceCapacity]],
    need: Callable[[LoadConfig], MemoryEstimate],
) -> LoadConfig:
    """Plan for the usual image size, and for no more offload than the largest device needs, of what
    the RAM has room for."""
    side = manifest.image_side or USUAL_SIDE
    load_config = replace(load_config, pixels=(own.width or side) * (own.height or side))
    if own.offload != "auto":
        return replace(load_config, offload=own.offload)
    if load_config.device == "cpu":
        return load_config
    there = capacities()
    most = max(
        (
            each.memory - each.headroom
            for each in there
            if each.kind == load_config.device and not each.reason
        ),
        default=0,
    )
    ram = next((each.physical or each.memory for each in there if each.id == CPU), None)
    modes = [replace(load_config, offload=mode) for mode in OFFLOADS]
    fitting = [each for each in modes if need(each).bytes <= most]
    in_ram = [each for each in fitting if ram is None or ram_need(manifest, each).lasting < ram]
    return next(iter(in_ram or fitting), load_config)
