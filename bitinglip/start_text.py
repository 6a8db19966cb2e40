"""Writes what ``serve`` prints when it answers, with devices and models, and when it stops."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from bitinglip.home import HomeError, resolve_home
from bitinglip.scheduling.models.operations import DeviceView
from model_store.sizes import size_text

_INDENT = " " * 10


def start_text(
    url: str,
    devices: Iterable[DeviceView],
    problems: Mapping[str, str],
    models: Mapping[str, Sequence[str]],
    home: Path,
    key: str | None = None,
) -> str:
    """Return the lines of a start. ``problems`` are those of the check ``devices``, ``models`` the
    capabilities of each; ``home`` is named in commands unless it is the usual one; ``key`` says
    where the admin key is, if it is new."""
    lines = [f"BitingLip answers on {url}", f"  docs    {url}/docs"]
    if key:
        lines.append(f"  key     {key}")
    told = [_device(device) for device in devices]
    if (missing := problems.get("card")) is not None:
        told.append(f"a card is not used: {missing}")
    lines.append(f"  devices {f'{chr(10)}{_INDENT}'.join(told)}")
    option = _home_option(home)
    none = f"none yet: bitinglip models pull REPO{option}"
    lines.append(f"  models  {', '.join(models) or none}")
    if talkers := [name for name in models if "chat" in models[name]]:
        tried = "demo-text" if "demo-text" in talkers else talkers[0]
        lines.append(f"  try     bitinglip chat {tried}{option}")
    return "\n".join(lines) + "\n"


def stop_text(requests: int) -> str:
    """Return the line of a stop that waits for running requests."""
    return f"Waiting for {requests} request{'s' * (requests != 1)}; Ctrl-C again stops now\n"


def _home_option(home: Path) -> str:
    """Return the option that commands in another terminal need to find this home."""
    with suppress(HomeError):
        if home == resolve_home(None, {}):
            return ""
    return f" --home {shlex.quote(str(home))}"


def _device(device: DeviceView) -> str:
    told = f"{device.id}: {device.name}, {size_text(device.memory_bytes)}"
    if device.reason is not None:
        return f"{told}; {device.state}: {device.reason}"
    return f"{told}; it {device.note}" if device.note else told
