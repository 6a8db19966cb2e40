"""Writes what ``serve`` prints when it answers, with devices and models, and when it stops."""

import shlex
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from bitinglip.home import HomeError, resolve_home
from bitinglip.scheduling.models.operations import DeviceView
from model_store.sizes import size_text

_INDENT = " " * 10
_NARROWEST = 40  #: columns for which lines are broken


def start_text(
    url: str,
    devices: Iterable[DeviceView],
    problems: Mapping[str, str],
    models: Mapping[str, Sequence[str]],
    home: Path,
    key: str | None = None,
    *,
    dashboard: bool = True,
    columns: int | None = None,
) -> str:
    """Return the lines of a start. ``problems`` are those of the check ``devices``, ``models`` the
    capabilities of each; ``home`` is named in commands unless it is the usual one; ``key`` says
    where the admin key is, if it is new. ``columns``: of the terminal; None if lines may be long.
    Commands, which are copied, are never broken."""
    lines = [f"BitingLip answers on {url}"]
    if dashboard:
        lines.append("  open    that address in a browser for the dashboard")
    lines.append(f"  docs    {url}/docs")
    if key:
        lines.append(f"  key     {key}")
    told = [_device(device) for device in devices]
    if (missing := problems.get("card")) is not None:
        told.append(f"a card is not used: {missing}" if told else f"none yet: {missing}")
    lines += _broken("devices", told, columns)
    option = _home_option(home)
    if models:
        lines += _broken("models", [", ".join(models)], columns)
    else:
        lines.append(f"  models  none yet: bitinglip models pull REPO{option}")
    if talkers := [name for name in models if "chat" in models[name]]:
        tried = "demo-text" if "demo-text" in talkers else talkers[0]
        lines.append(f"  try     bitinglip chat {tried}{option}")
    return "\n".join(lines) + "\n"


def stop_text(requests: int) -> str:
    """Return the line of a stop that waits for running requests."""
    return f"Waiting for {requests} request{'s' * (requests != 1)}; Ctrl-C again stops now\n"


def _broken(head: str, texts: Iterable[str], columns: int | None) -> Iterator[str]:
    """Yield lines below a head, each as wide as the terminal at most."""
    for text in texts:
        parts = textwrap.wrap(
            text,
            max(_NARROWEST, columns or sys.maxsize) - len(_INDENT),
            break_long_words=False,
            break_on_hyphens=False,
        )
        for part in parts:
            yield f"  {head:<7} {part}" if head else f"{_INDENT}{part}"
            head = ""


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
