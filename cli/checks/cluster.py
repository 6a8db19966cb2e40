"""Checks whether the Ray cluster can be joined, where the settings ask for one."""

import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING

from cli.checks.findings import Finding, told

if TYPE_CHECKING:
    from bitinglip.settings import Settings

_SECONDS = 2.0  #: for a connection to the head
_RAY_SECONDS = 15.0  #: for Ray's own look; it waits for a minute where no head is behind a port
_STATUS = ("-m", "ray.scripts.scripts", "status")


def cluster(settings: "Settings") -> Iterator[Finding]:
    """Find a head that does not answer, a secret that cannot be read, or Ray not installed."""
    from bitinglip.cluster import check_cluster, uses_ray
    from bitinglip.settings_loader import SettingsError
    from workers.nodes.ray_address import HINT, why_unreached

    if not uses_ray(settings):
        return
    try:
        check_cluster(settings)
    except SettingsError as error:
        yield told("cluster", error)
        return
    version, address = metadata.version("ray"), settings.workers.ray.address
    where = "on this machine" if address == "auto" else f"at {address}"
    if (why := why_unreached(address, _SECONDS)) is not None:
        yield Finding("cluster", "error", f"nothing answers {where} ({why})", HINT)
    elif (why := _why_no_cluster(address)) is not None:
        yield Finding("cluster", "error", f"no Ray cluster answers {where}: {why}", HINT)
    else:
        yield Finding("cluster", "ok", f"ray {version}; a cluster answers {where}")


def _why_no_cluster(address: str) -> str | None:
    """Ask Ray's own command; return why there is no cluster, None if there is one."""
    try:
        asked = subprocess.run(
            [sys.executable, *_STATUS, *([] if address == "auto" else ["--address", address])],
            capture_output=True,
            text=True,
            timeout=_RAY_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {_RAY_SECONDS:g} s: the head has ended, or what listens is none"
    except OSError as error:
        return f"ray could not be started ({error.strerror})"
    if asked.returncode == 0:
        return None
    lines = [line.strip() for line in asked.stderr.splitlines() if line.strip()]
    return (lines or [f"'ray status' ended with code {asked.returncode}"])[-1]
