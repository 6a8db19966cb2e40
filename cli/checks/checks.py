"""Runs the checks of ``doctor``. Each check yields findings; none changes anything."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cli.checks import service
from cli.checks.accelerator import every_device
from cli.checks.cluster import cluster
from cli.checks.confinement import confinement
from cli.checks.doors import every_door
from cli.checks.findings import Finding
from cli.checks.gateways import gateways
from cli.checks.redis import redis
from cli.checks.surroundings import every_surrounding
from cli.checks.tracing import tracing
from cli.checks.upstreams import upstreams
from cli.context import CliContext
from cli.show.output import size

if TYPE_CHECKING:
    from bitinglip.settings import Settings
    from model_store.manifest import Manifest

_OLDEST_PYTHON = (3, 11)
_LEAST_DISK = 10**9
_GOOD_DISK = 20 * 10**9


def every_finding(place: CliContext) -> Iterator[Finding]:
    from bitinglip.settings import Settings

    yield _python()
    settings, finding = _config(place)
    yield from every_device(settings or Settings())
    yield finding
    yield confinement(settings or Settings())
    yield _home(place)
    yield _disk(place)
    yield from every_surrounding(settings or Settings(), place.home.models)
    if settings is not None:
        yield _port(place, settings)
        yield from every_door(settings.server)
        yield from tracing(settings)
        yield from cluster(settings)
        yield from redis(settings)
        yield from gateways(settings, place.home)
        yield from upstreams(settings)
    yield _database(place, settings)
    yield from _models(place)


def of_service(name: str, place: CliContext) -> Iterator[Finding]:
    """Report how the server's surroundings differ once systemd runs it."""
    from bitinglip.settings import Settings

    unit = service.read(name)
    if isinstance(unit, Finding):
        yield unit
        return
    settings, _ = _config(place)
    yield from service.every_difference(unit, settings or Settings(), os.environ)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _OLDEST_PYTHON:
        oldest = ".".join(map(str, _OLDEST_PYTHON))
        return Finding("python", "error", f"this is {version}", f"install {oldest} or newer")
    return Finding("python", "ok", version)


def _config(place: CliContext) -> "tuple[Settings | None, Finding]":
    from bitinglip.settings_loader import SettingsError, check_start, find_config

    try:
        settings = place.settings()
        check_start(settings)
    except SettingsError as error:
        problems = "; ".join(error.problems)
        return None, Finding(
            "config",
            "error",
            problems,
            "correct it, then run this again: what the settings name is looked at only then",
        )
    file = find_config(place.config, place.home.root)
    return settings, Finding("config", "ok", f"{file} is valid" if file else "defaults; no file")


def _home(place: CliContext) -> Finding:
    from model_store.rights import refusal

    root = place.home.root
    if (why := refusal(root, write=True)) is not None:
        return Finding("home", "error", why.detail, why.advice)
    if not root.exists():
        return Finding("home", "ok", f"{root} is made at the first start")
    if not root.is_dir():
        return Finding("home", "error", f"{root} is not a folder", "choose another with --home")
    if root.stat().st_mode & 0o022:
        return Finding("home", "error", f"others may write to {root}", f"run: chmod 700 {root}")
    if (why := place.home.refusal()) is not None:
        return Finding("home", "error", why.detail, why.advice)
    return Finding("home", "ok", str(root))


def _disk(place: CliContext) -> Finding:
    import shutil

    root = place.home.root
    folder = next(path for path in (root, *root.parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    detail = f"{size(free)} free at {folder}"
    advice = "make room, or choose another disk with --home"
    if free < _LEAST_DISK:
        return Finding("disk", "error", f"{detail}, less than {size(_LEAST_DISK)}", advice)
    if free < _GOOD_DISK:
        return Finding("disk", "warning", f"{detail}, which few models fit into", advice)
    return Finding("disk", "ok", detail)


def _port(place: CliContext, settings: "Settings") -> Finding:
    import socket

    if (running := place.home.read_server_json()) is not None:
        return Finding("port", "ok", f"the server of this home answers on {running['url']}")
    host, port = settings.server.host, settings.server.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        return Finding(
            "port",
            "error",
            f"cannot listen on {host}:{port} ({reason})",
            "stop what listens there, or choose another with --port",
        )
    return Finding("port", "ok", f"{host}:{port} is free")


def _database(place: CliContext, settings: "Settings | None") -> Finding:
    """Check the database read-only: what a start would migrate or repair stays as it is."""
    if settings is not None and settings.database.url is not None:
        return _postgres(settings.database.url)
    import sqlite3
    from contextlib import closing

    path = place.home.database
    if not path.exists():
        return Finding("database", "ok", f"{path} is made at the first start")
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            (sound,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            (version,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except (sqlite3.Error, TypeError) as error:
        sound, version = str(error), None
    if sound != "ok":
        problem = f"{path} cannot be read: {sound}"
        return Finding("database", "error", problem, "restore a backup, or move it away")
    return _judged(str(path), str(version))


def _postgres(url: str) -> Finding:
    from bitinglip.db import postgres
    from bitinglip.db.files import DatabaseError

    try:
        version = postgres.version_of(postgres.address(url))
    except DatabaseError as error:
        advice = "start it, or mend database.url, its password (PGPASSWORD, ~/.pgpass) or rights"
        return Finding("database", "error", str(error), advice)
    if version is None:
        return Finding("database", "ok", "PostgreSQL answers; its tables are made at the start")
    return _judged(postgres.shown(url), version)


def _judged(name: str, version: str) -> Finding:
    from bitinglip.db.migrations import HEAD, VERSIONS

    if version not in VERSIONS:
        return Finding(
            "database",
            "error",
            f"written by another version of BitingLip (schema {version}, this one knows {HEAD})",
            "install that version, or restore an older backup",
        )
    later = "" if version == HEAD else "; the next start brings it to this version"
    return Finding("database", "ok", f"{name} opens{later}")


def _models(place: CliContext) -> Iterator[Finding]:
    """Check that each file of each model exists in its size; `models verify` reads the files."""
    from cli import offline
    from model_store.names import folder_name
    from model_store.rights import unreadable_models

    if not os.path.isdir(place.home.models):
        yield Finding("models", "ok", "none yet")
        return
    unreadable = dict(unreadable_models(place.home.models))
    for name, why in unreadable.items():
        yield Finding("models", "error", f"{name}: {why.detail}", why.advice)
    if place.home.models.name in unreadable:
        return
    store = offline.store(place.home)
    readable = [each for each in store.list() if folder_name(each.name) not in unreadable]
    problems = {each.name: _missing(each, store.path(each.name)) for each in readable}
    folders = {path.name for path in place.home.models.iterdir() if path.name[0] != "."}
    folders -= unreadable.keys()
    for folder in sorted(folders - {folder_name(name) for name in problems}):
        problem = f"{place.home.models / folder} holds no model that can be read"
        yield Finding("models", "warning", problem, "move it away, and pull the model again")
    for name, missing in problems.items():
        if missing:
            advice = f"bitinglip models remove {name}, then pull it again"
            yield Finding("models", "error", f"{name}: missing or cut off: {missing}", advice)
    if not any(problems.values()) and not unreadable:
        yield Finding("models", "ok", f"{len(problems)} in the store, all files there")


def _missing(manifest: "Manifest", folder: Path) -> str:
    def is_whole(path: Path, length: int) -> bool:
        return path.is_file() and path.stat().st_size == length

    files = [file.path for file in manifest.files if not is_whole(folder / file.path, file.size)]
    return ", ".join(files)
