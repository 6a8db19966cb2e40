"""Holds the gateway's share of confinement: what it tells its workers, and what it
hides of itself."""

import contextlib
from collections.abc import MutableMapping

from bitinglip.home import Home
from bitinglip.settings import Settings
from workers.confinement.limits import not_dumpable
from workers.devices.host import Host
from workers.folders import WorkFolders
from workers.launcher import SpawnLauncher
from workers.protocol import Confinement

#: Secrets of commands, which the server itself makes no use of.
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "BITINGLIP_API_KEY")


def spawn_launcher(settings: Settings, home: Home) -> SpawnLauncher:
    """Return what starts this server's workers, confined; sweeps what an earlier server left."""
    folders = WorkFolders(home.work)
    folders.sweep()
    secrets = (settings.hub.token_file, settings.server.tls_key)
    confinement = Confinement(
        mode=settings.workers.confine,
        inputs=str(home.uploads),
        caches=str(home.caches),
        hidden=(str(home.root), *(path for path in secrets if path is not None)),
        memory_bytes=Host().total_bytes,
    )
    environ = {} if settings.devices.perf_boost else {"CUDA_DISABLE_PERF_BOOST": "1"}
    return SpawnLauncher(folders=folders, confinement=confinement, environ=environ)


def hide_secrets(environ: MutableMapping[str, str]) -> None:
    """Keep the process's memory and environment from workers that have been broken into.

    The kernel shows what the process was started with for as long as it runs; not dumpable, it
    shows that to root only, and to no confined worker.
    """
    for name in _SECRETS:
        environ.pop(name, None)
    with contextlib.suppress(OSError):  # not on this system, which doctor says
        not_dumpable()
