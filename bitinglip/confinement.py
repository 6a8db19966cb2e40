"""The gateway's share of confinement: what it tells its workers, and what it hides of itself."""

import contextlib
from collections.abc import MutableMapping

from bitinglip.home import Home
from bitinglip.settings import Settings
from workers.confinement import Confinement
from workers.confinement.limits import not_dumpable

#: Secrets of commands, which the server itself makes no use of.
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "BITINGLIP_API_KEY")


def confinement_of(settings: Settings, home: Home, ram: int) -> Confinement:
    """Return how workers of this server are confined; ``ram`` is the machine's, in bytes."""
    secrets = (settings.hub.token_file, settings.server.tls_key)
    return Confinement(
        mode=settings.workers.confine,
        inputs=str(home.files),
        caches=str(home.caches),
        hidden=(str(home.root), *(path for path in secrets if path is not None)),
        memory_bytes=ram,
    )


def hide_secrets(environ: MutableMapping[str, str]) -> None:
    """Keep the process's memory and environment from workers that have been broken into.

    The kernel shows what the process was started with for as long as it runs; not dumpable, it
    shows that to root only, and to no confined worker.
    """
    for name in _SECRETS:
        environ.pop(name, None)
    with contextlib.suppress(OSError):  # not on this system, which doctor says
        not_dumpable()
