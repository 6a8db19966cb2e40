"""The cards of the NVIDIA driver, by NVML."""

import os
from collections.abc import Iterable, Sequence
from typing import Any, Self

from workers.devices import Device, Reading


class Nvidia:
    """Cards by NVML. Every question may fail by itself: an old card lacks some sensors."""

    def __init__(self, nvml: Any, visible: str | None) -> None:
        """``nvml``: the module pynvml, initialised; ``visible``: CUDA_VISIBLE_DEVICES, or None."""
        self._nvml = nvml
        self._handles = dict(self._visible(visible))

    @classmethod
    def open(cls) -> Self | None:
        """None where there is no driver, or no card that we may use."""
        import pynvml

        try:
            pynvml.nvmlInit()
            found = cls(pynvml, os.environ.get("CUDA_VISIBLE_DEVICES"))
        except pynvml.NVMLError:
            return None
        return found if found.devices() else None

    def devices(self) -> Sequence[Device]:
        found = []
        for device, handle in self._handles.items():
            if (memory := self._ask("nvmlDeviceGetMemoryInfo", handle)) is not None:
                name = self._ask("nvmlDeviceGetName", handle) or "NVIDIA card"
                text = name.decode() if isinstance(name, bytes) else str(name)
                found.append(Device(device, text, "cuda", int(memory.total), int(memory.total)))
        return found

    def read(self, device: Device, pids: Iterable[int]) -> Reading | None:  # noqa: ARG002
        handle = self._handles[device.id]
        memory = self._ask("nvmlDeviceGetMemoryInfo", handle)
        if memory is None:
            return None
        busy = self._ask("nvmlDeviceGetUtilizationRates", handle)
        milliwatts = self._ask("nvmlDeviceGetPowerUsage", handle)
        warmth = self._ask(
            "nvmlDeviceGetTemperature", handle, getattr(self._nvml, "NVML_TEMPERATURE_GPU", 0)
        )
        processes = self._ask("nvmlDeviceGetComputeRunningProcesses", handle) or ()
        return Reading(
            used_bytes=int(memory.used),
            processes={p.pid: int(p.usedGpuMemory) for p in processes if p.usedGpuMemory},
            utilisation=None if busy is None else busy.gpu / 100,
            temperature_c=None if warmth is None else float(warmth),
            power_w=None if milliwatts is None else milliwatts / 1000,
        )

    def close(self) -> None:
        self._ask("nvmlShutdown")

    def _visible(self, visible: str | None) -> Iterable[tuple[str, Any]]:
        """The cards that this process may use, under the names by which a worker finds them.

        By index in the order of the bus, as workers are told to count too; or by UUID where the
        operator names them so.
        """
        if visible is None:
            count = self._ask("nvmlDeviceGetCount") or 0
            names = [str(index) for index in range(count)]
        else:
            names = [name.strip() for name in visible.split(",") if name.strip()]
        for name in names:
            if name.isdigit():
                handle = self._ask("nvmlDeviceGetHandleByIndex", int(name))
            else:
                handle = self._ask("nvmlDeviceGetHandleByUUID", name)
            if handle is None:
                return  # as CUDA does: what comes after an unknown card does not count
            yield name, handle

    def _ask(self, question: str, *about: Any) -> Any:
        """The answer, or None where the card or the driver has none."""
        try:
            return getattr(self._nvml, question)(*about)
        except self._nvml.NVMLError:
            return None
