"""Checks what several servers of one database must have in common, where the settings share it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cli.checks.findings import Finding, told

if TYPE_CHECKING:
    from bitinglip.home import Home
    from bitinglip.settings import Settings


def gateways(settings: "Settings", home: "Home") -> Iterator[Finding]:
    """Find a folder or a secret that the servers do not share, and limits that each counts alone.

    Nothing is made: a new home is judged by what its start would take over.
    """
    from bitinglip.db.files import DatabaseError
    from bitinglip.home import HomeError

    own = settings.gateways
    if not own.shared and own.secret_file is None:
        return
    try:
        secret = home.planned_secret(None if own.secret_file is None else Path(own.secret_file))
    except HomeError as error:
        yield told("gateways", error)
        return
    if not own.shared:
        return
    if (finding := _folder(Path(own.folder or ""))) is not None:
        yield finding
        return
    if secret is not None and settings.database.url is not None:
        try:
            _check_keys(settings.database.url, secret)
        except DatabaseError as error:
            yield told("gateways", error)
            return
    if secret is None:
        problem = "a start makes a secret of its own, with which no key of the other servers works"
        yield Finding("gateways", "warning", problem, "set gateways.secret_file in all of them")
    elif settings.redis.url is None:
        problem = "without redis.url each server applies limits by itself"
        yield Finding("gateways", "warning", problem, "name one Redis in all of them")
    else:
        yield Finding("gateways", "ok", f"{own.folder} and the secret can be shared")


def _folder(folder: Path) -> Finding | None:
    """Return what is wrong with the folder for files; None if nothing is."""
    name = f"gateways.folder: {folder}"
    try:
        is_there = folder.is_dir()
    except OSError as error:
        problem = f"{name} cannot be looked at ({(error.strerror or str(error)).lower()})"
        return Finding("gateways", "error", problem, "let this user in, or correct the setting")
    if not is_there:
        return Finding("gateways", "error", f"{name} is not there", "mount it, or make it")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        problem = f"{name} cannot be written by this user"
        return Finding("gateways", "error", problem, "run all servers as one user who owns it")
    return None


def _check_keys(url: str, secret: bytes) -> None:
    """Raise DatabaseError where all keys of the database were made with another secret.

    What keeps the database from being read is told by its own check.
    """
    from bitinglip.access.keys import PEPPER, PEPPERS, check_pepper
    from bitinglip.db import postgres
    from bitinglip.db.files import DatabaseError
    from bitinglip.home import derived

    try:
        found = postgres.read_once(postgres.address(url), PEPPERS)
    except DatabaseError:
        return
    check_pepper(found, derived(secret, PEPPER))
