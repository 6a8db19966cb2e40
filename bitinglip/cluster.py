"""Opens the cluster of a server whose workers run on the nodes of Ray."""

import asyncio
import hashlib
import os
import secrets
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import structlog

from bitinglip.confinement import secret_paths
from bitinglip.extras import install_command
from bitinglip.file_stamp import file_stamp
from bitinglip.home import Home
from bitinglip.settings import Model, Settings
from bitinglip.settings.workers import port_range
from bitinglip.settings_loader import SettingsError
from model_store.errors import BadFiles
from model_store.manifest import FILES, MANIFEST, read_manifest
from model_store.names import model_name
from workers.folders import WorkFolders
from workers.nodes.cluster import Agents, Cluster
from workers.nodes.handshake import BadSecret, read_secret
from workers.nodes.messages import AgentConfig
from workers.nodes.models.source import ModelSource, StoredModel
from workers.nodes.ray_agents import RayAgents, is_installed

log = structlog.get_logger(__name__)

_MISSING = "workers.launcher is 'ray' and Ray is not installed"
_SECRET_ADVICE = "make it once and copy it to every node, as docs/ray.md says"
_SECRET_BYTES = 32


def uses_ray(settings: Settings) -> bool:
    return settings.workers.launcher == "ray"


def check_cluster(settings: Settings) -> None:
    """Raise SettingsError where the settings ask for what is not installed or cannot be read."""
    if not uses_ray(settings):
        return
    if not is_installed():
        raise SettingsError([f"{_MISSING}; run: {install_command('ray')}"])
    _secret(settings)


async def open_cluster(
    settings: Settings,
    home: Home,
    agents: Agents | None = None,
    is_stopping: Callable[[], bool] = lambda: False,
) -> Cluster:
    """Connect to the nodes, and start their agents.

    ``agents``: in place of those that Ray starts; ``is_stopping``: once true, nodes are waited for
    no longer. Raises SettingsError.
    """
    own, secret = settings.workers.ray, _secret(settings)
    if agents is None:
        config = agent_config(settings, home, secret)
        agents = RayAgents(own.address, own.namespace, own.bind_address, config)
    folders = WorkFolders(home.work)
    await asyncio.to_thread(folders.sweep)
    patience = min(own.heartbeat_timeout, settings.workers.heartbeat_timeout / 2)
    cluster = Cluster(
        agents,
        secret,
        folders,
        home.uploads,
        heartbeat_timeout=patience,
        source=model_source(home) if own.models == "pull" else None,
    )
    if any(each.text.prefix_ram_bytes for each in settings.models.values()):
        log.warning("prefixes in RAM do not outlive a worker that runs on another machine")
    log.info("waiting for the nodes of the Ray cluster", address=own.address)
    await cluster.open(own.start_timeout, is_stopping)
    return cluster


def agent_config(settings: Settings, home: Home, secret: str) -> AgentConfig:
    """Return what the agents are started with; the secret only if no file has it there."""
    own, workers, devices = settings.workers.ray, settings.workers, settings.devices
    files = [path for each in settings.models.values() for path in _files_of(each)]
    folder = own.folder or str(Path(tempfile.gettempdir()) / f"bitinglip-{os.geteuid()}")
    copies = own.models_path or str(Path(folder) / "models")
    return AgentConfig(
        secret="" if own.secret_file else secret,
        secret_file=own.secret_file,
        ports=port_range(own.ports),
        folder=folder,
        models=(str(home.models), *files),
        hidden=(str(home.root), *secret_paths(settings)),
        confine=workers.confine,
        perf_boost=devices.perf_boost,
        spare=workers.spare,
        fake=tuple((each.name, each.memory_bytes) for each in devices.fake),
        cpu_memory_bytes=devices.cpu_memory_bytes,
        memory_limit=dict(devices.memory_limit),
        headroom_bytes=devices.headroom_bytes,
        display_headroom_bytes=devices.display_headroom_bytes,
        store=copies if own.models == "pull" else None,
        store_max_bytes=own.models_max_bytes,
        ends_with_input=True,
    )


def model_source(home: Home) -> ModelSource:
    """Return what lists the files of models for nodes that get copies of them.

    Nodes know the store by its machine and path: gateways on one machine that use one store find
    each other's copies.
    """
    where = f"{socket.gethostname()}:{home.models}"
    origin = hashlib.sha256(where.encode()).hexdigest()[:32]
    return ModelSource(home.models, origin, _listed, lambda: _models(home.models))


def _models(root: Path) -> dict[str, StoredModel]:
    """Return the models of a store by the folders of their files. Raises OSError."""
    stamps = {each: file_stamp(str(each / MANIFEST)) for each in root.iterdir()}
    return {
        str(folder / FILES): StoredModel(model_name(folder.name), stamp)
        for folder, stamp in stamps.items()
        if stamp  # it has a manifest
    }


def _listed(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Return what the manifest of a model lists of its folder of files; nothing of other ones."""
    if folder.name != FILES:
        return {}
    try:
        manifest = read_manifest(folder.parent)
    except (BadFiles, OSError, ValueError):  # a node may name a path that none can be
        return {}
    return {each.path: (each.size, each.mtime_ns, each.sha256) for each in manifest.files}


def _files_of(own: Model) -> list[str]:
    """Return the files outside the store that a model's settings name."""
    return [*own.speech.voices.values(), *own.image.loras.values()]


def _secret(settings: Settings) -> str:
    """Return the secret of the cluster. Raises SettingsError."""
    if settings.workers.ray.secret_file is None:
        return secrets.token_hex(_SECRET_BYTES)
    try:
        return read_secret(settings.workers.ray.secret_file)
    except BadSecret as error:
        problem = f"workers.ray.secret_file: {error}"
        advice = "" if "chmod" in problem else f"; {_SECRET_ADVICE}"
        raise SettingsError([problem + advice]) from None
