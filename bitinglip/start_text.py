"""Writes what ``serve`` prints once it answers: where, with which devices and models."""

from collections.abc import Iterable, Mapping, Sequence

from bitinglip.scheduling.models.operations import DeviceView
from model_store.sizes import size_text

_INDENT = " " * 10


def start_text(
    url: str,
    devices: Iterable[DeviceView],
    problems: Mapping[str, str],
    models: Sequence[str],
    key: str | None = None,
) -> str:
    """Return the lines of a start. ``problems`` are those of the check ``devices``; ``key`` says
    where the admin key is, if it is new."""
    lines = [f"BitingLip answers on {url}", f"  docs    {url}/docs"]
    if key:
        lines.append(f"  key     {key}")
    told = [_device(device) for device in devices]
    if (missing := problems.get("card")) is not None:
        told.append(f"a card is not used: {missing}")
    lines.append(f"  devices {f'{chr(10)}{_INDENT}'.join(told)}")
    lines.append(f"  models  {', '.join(models) or 'none yet: bitinglip models pull REPO'}")
    if models:
        tried = "demo-text" if "demo-text" in models else models[0]
        lines.append(f"  try     bitinglip chat {tried}")
    return "\n".join(lines) + "\n"


def _device(device: DeviceView) -> str:
    told = f"{device.id}: {device.name}, {size_text(device.memory_bytes)}"
    if device.reason is not None:
        return f"{told}; {device.state}: {device.reason}"
    return f"{told}; it {device.note}" if device.note else told
