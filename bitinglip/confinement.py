"""Holds the gateway's share of confinement: what it tells its workers, and what it
hides of itself."""

import contextlib
import os
from collections.abc import MutableMapping
from urllib.parse import parse_qsl, urlsplit

from bitinglip.home import Home
from bitinglip.settings import Settings
from workers.confinement.limits import not_dumpable
from workers.devices.host import Host
from workers.folders import WorkFolders
from workers.kept_memory import KeptMemory
from workers.launcher import SpawnLauncher
from workers.protocol import Confinement

_OF_THE_HUB = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
#: Of commands, which the server itself makes no use of.
_OF_COMMANDS = ("BITINGLIP_API_KEY",)


def spawn_launcher(settings: Settings, home: Home) -> SpawnLauncher:
    """Return what starts this server's workers, confined; sweeps what an earlier server left."""
    folders = WorkFolders(home.work)
    folders.sweep()
    host = Host()
    confinement = Confinement(
        mode=settings.workers.confine,
        inputs=str(home.uploads),
        caches=str(home.caches),
        hidden=(str(home.root), *secret_paths(settings)),
        memory_bytes=host.total_bytes,
    )
    environ = {} if settings.devices.perf_boost else {"CUDA_DISABLE_PERF_BOOST": "1"}
    kept = KeptMemory(host.total_bytes, host.free)
    return SpawnLauncher(folders=folders, confinement=confinement, environ=environ, kept=kept)


def secret_paths(settings: Settings) -> tuple[str, ...]:
    """Return the files of secrets that the settings name, which no worker may open."""
    url = "" if settings.redis.url is None else settings.redis.url
    named = (
        settings.hub.token_file,
        settings.server.tls_key,
        settings.redis.password_file,
        dict(parse_qsl(urlsplit(url).query)).get("ssl_keyfile"),
        settings.gateways.secret_file,
        settings.workers.ray.secret_file,
        *(each.upstream.key_file for each in settings.models.values()),
    )
    return tuple(os.path.expanduser(path) for path in named if path)


def hide_secrets(environ: MutableMapping[str, str]) -> str | None:
    """Return the hub's token; keep memory and environment from workers that were broken into.

    The kernel shows what the process was started with for as long as it runs; not dumpable, it
    shows that to root only, and to no confined worker.
    """
    found = [environ.pop(name, "").strip() for name in (*_OF_THE_HUB, *_OF_COMMANDS)]
    with contextlib.suppress(OSError):  # not on this system, which doctor says
        not_dumpable()
    return found[0] or found[1] or None
