"""Chooses the number formats that models are planned and loaded in, where no setting names one."""

from collections.abc import Iterable

import structlog

from bitinglip.scheduling.placement.estimate import own_dtype
from model_store.manifest import Manifest
from workers.devices import Device
from workers.engines.dtypes import HALVED, dtype_for

log = structlog.get_logger(__name__)

_WIDE = "float32"


class NumberFormats:
    """Knows what cards compute in, and which models gave no numbers in float16 on which cards."""

    def __init__(self) -> None:
        self._wide: set[tuple[str, str]] = set()  #: (model, name of a card)

    def planned(self, manifest: Manifest, kind: str, devices: Iterable[Device]) -> str | None:
        """Return the format to plan memory with: the widest that a device of this kind needs.

        None where all compute as the estimate takes for granted.
        """
        alike = [device for device in devices if device.kind == kind]
        if any((manifest.name, device.name) in self._wide for device in alike):
            return _WIDE
        family = manifest.kind if manifest.kind in ("text", "image") else manifest.model_type or ""
        if family not in HALVED or kind != "cuda":
            return None
        chosen = {
            dtype_for(
                family,
                own_dtype(manifest),
                device.capability,
                device.name,
                model_type=manifest.model_type or "",
            )
            for device in alike
            if device.capability is not None
        }
        return _WIDE if _WIDE in chosen else None

    def of_load(self, model: str, devices: Iterable[Device]) -> str | None:
        """Return the format to load a model in on these devices; None leaves it to the engine."""
        names = {device.name for device in devices}
        return _WIDE if any((model, name) in self._wide for name in names) else None

    def widen(self, model: str, devices: Iterable[Device]) -> bool:
        """Note that a model gave no numbers in float16 on these devices; False if that is known,
        so that another load would end alike."""
        found = {(model, device.name) for device in devices}
        if found <= self._wide:
            return False
        self._wide |= found
        names = sorted(name for _, name in found)
        log.warning("no numbers in float16: loaded again in float32", model=model, devices=names)
        return True
