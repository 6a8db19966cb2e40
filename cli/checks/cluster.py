"""Checks whether the Ray cluster can be joined, where the settings ask for one."""

import socket
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING

from cli.checks.findings import Finding

if TYPE_CHECKING:
    from bitinglip.settings import Settings

_SECONDS = 2.0  #: for a connection to the head
_START = "start it with 'ray start --head', or correct workers.ray.address"


def cluster(settings: "Settings") -> Iterator[Finding]:
    """Find a head that does not answer, a secret that cannot be read, or Ray not installed."""
    from bitinglip.cluster import check_cluster, uses_ray
    from bitinglip.settings_loader import SettingsError

    if not uses_ray(settings):
        return
    try:
        check_cluster(settings)
    except SettingsError as error:
        advice = "install bitinglip[ray], and make the file of the secret as its setting says"
        yield Finding("cluster", "error", " ".join(error.problems), advice)
        return
    version = metadata.version("ray")
    host, _, port = settings.workers.ray.address.rpartition(":")
    if not port.isdecimal():
        yield Finding("cluster", "ok", f"ray {version}; the cluster of this machine is used")
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS).close()
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", None) or error).lower()
        detail = f"nothing answers at {settings.workers.ray.address} ({reason})"
        yield Finding("cluster", "error", detail, _START)
    else:
        detail = f"ray {version}; a head listens at {settings.workers.ray.address}"
        yield Finding("cluster", "ok", detail)
