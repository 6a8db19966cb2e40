"""Describes entries of the audit log: who did what, to what, when, from where, and how it ended.

Texts are cut to bounds, cleared of secrets and of control characters before they are kept.
"""

import getpass
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from bitinglip.telemetry.redaction import escape, mask

OK = "ok"  #: the outcome of what was done; else it is the code of the error
LONGEST_JSON = 8192  #: characters of ``before`` and of ``after``
_SHORT, _NAME, _AGENT, _TARGET = 64, 128, 200, 256


class Action(StrEnum):
    """Names everything that is audited."""

    KEY_CREATE = "key.create"
    KEY_UPDATE = "key.update"
    KEY_ROTATE = "key.rotate"
    KEY_REVOKE = "key.revoke"
    TOKEN_ISSUE = "token.issue"
    TOKEN_REVOKE = "token.revoke"
    MODEL_DOWNLOAD = "model.download"  #: was asked for; its end is a model.pull
    MODEL_PULL = "model.pull"
    MODEL_UPDATE = "model.update"
    MODEL_REPAIR = "model.repair"
    MODEL_VERIFY = "model.verify"
    MODEL_CHANGE = "model.change"
    MODEL_IMPORT = "model.import"
    MODEL_LOAD = "model.load"
    MODEL_UNLOAD = "model.unload"
    MODEL_REMOVE = "model.remove"
    STORE_CLEAN = "store.clean"
    DOWNLOAD_CANCEL = "download.cancel"
    CACHE_CLEAR = "cache.clear"
    WORKER_RESTART = "worker.restart"
    WORKER_DRAIN = "worker.drain"
    WORKER_STOP = "worker.stop"
    SERVER_START = "server.start"
    SERVER_STOP = "server.stop"
    SERVER_PROFILE = "server.profile"
    SETTINGS_CHANGE = "settings.change"
    BACKUP = "backup"
    #: a wrong, expired or revoked credential, or one that is not for this address
    AUTH_REFUSED = "auth.refused"
    #: a valid key that asked for more than it may
    ACCESS_REFUSED = "access.refused"
    #: old entries were deleted; or entries could not be kept; or the database is an older copy,
    #: such as a backup that was restored; or the log was changed by another program
    AUDIT_PRUNE = "audit.prune"
    AUDIT_LOST = "audit.lost"
    AUDIT_ROLLBACK = "audit.rollback"
    AUDIT_BROKEN = "audit.broken"


@dataclass(frozen=True, slots=True)
class Actor:
    """Names who acts, and from where: a key, or ``cli``, or ``server``."""

    id: str
    name: str = ""
    token: str = ""  #: the id of the session token that was used
    address: str = ""
    request_id: str = ""
    user_agent: str = ""


SERVER = Actor("server")


def cli_actor() -> Actor:
    """Return who works on a home directly: the system's user behind a command."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a user without an entry, in a container
        name = ""
    return Actor("cli", name)


def now() -> int:
    """Return the time in microseconds of Unix time."""
    return time.time_ns() // 1000


@dataclass(frozen=True, slots=True)
class Entry:
    """Describes what was done, or refused; ``before`` and ``after`` hold what it changed."""

    action: Action
    actor: Actor = SERVER
    target: str = ""
    outcome: str = OK
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None
    at: int = field(default_factory=now)  #: microseconds of Unix time

    def columns(self) -> dict[str, Any]:
        """Return what is kept of it, by the names of the table's columns."""
        actor = self.actor
        return {
            "at": self.at,
            "actor": _text(actor.id, _SHORT),
            "actor_name": _text(actor.name, _NAME),
            "token": _text(actor.token, _SHORT),
            "action": str(self.action),
            "target": _text(self.target, _TARGET),
            "outcome": _text(self.outcome, _SHORT),
            "address": _text(actor.address, _SHORT),
            "request_id": _text(actor.request_id, _NAME),
            "user_agent": _text(actor.user_agent, _AGENT),
            "before": _json(self.before),
            "after": _json(self.after),
        }


def changed(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return both without the fields that are equal."""
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return (
        {name: before.get(name) for name in names},
        {name: after.get(name) for name in names},
    )


def _text(value: str, most: int) -> str:
    return escape(mask(value))[:most]


def _json(value: Mapping[str, Any] | None) -> str | None:
    if value is None:
        return None
    text = mask(json.dumps(value, default=_plain, sort_keys=True, separators=(",", ":")))
    if len(text) <= LONGEST_JSON:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps({"too_long": len(text), "sha256": digest}, separators=(",", ":"))


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    raise TypeError(f"{type(value).__name__} is not kept in the audit log")
