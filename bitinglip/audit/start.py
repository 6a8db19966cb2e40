"""Enters the start of the server in the audit log, and looks after the log while it runs."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import structlog

from bitinglip import __version__
from bitinglip.audit.entry import Action, Entry, changed
from bitinglip.audit.log import AuditLog
from bitinglip.background import RECOVERABLE, reason
from bitinglip.settings import Settings
from bitinglip.telemetry.health import Health

log = structlog.get_logger(__name__)

_CHECK, _PART = "database", "audit log"  #: the problem of /health while the log is not whole
_LONGEST = 4096  #: characters of settings that are shown; of more there is only the digest
#: what stands before the host of an address, such as a password
_USER_INFO = re.compile(r"(?<=://)[^/@\s]*@")
_DIGEST = "settings_sha256"


async def begin(audit: AuditLog, settings: Settings, gateway: str = "") -> None:
    """Enter the start of the server, and what of its settings is another than at the last one.

    ``gateway``: its name among servers that share the database; the last start is its own.

    Where nothing can be written this waits in memory: a server starts on a full disk too.
    Raises DatabaseUnavailable if the log cannot be read.
    """
    shown = _shown(settings)
    newest = await audit.last(Action.SERVER_START, Action.SERVER_STOP, target=gateway)
    former = _after(await audit.last(Action.SERVER_START, target=gateway))
    after = {"version": __version__, **shown}
    if newest is not None and newest["action"] == Action.SERVER_START:
        after["ended_without_stop"] = newest["entry"]
    audit.remember(Entry(Action.SERVER_START, target=gateway, after=after))
    if former.get(_DIGEST, shown[_DIGEST]) != shown[_DIGEST]:
        if "settings" in former and "settings" in shown:
            old, new = changed(former["settings"], shown["settings"])
        else:
            old, new = {_DIGEST: former[_DIGEST]}, {_DIGEST: shown[_DIGEST]}
        audit.remember(Entry(Action.SETTINGS_CHANGE, target="settings", before=old, after=new))
    try:
        await audit.flush()
    except RECOVERABLE as error:
        log.warning("the start is not in the audit log yet", reason=reason(error))


def _shown(settings: Settings) -> dict[str, Any]:
    """Return what is entered of the settings: a digest, and those that are not the defaults."""
    chosen = _flat(settings.model_dump(mode="json", exclude_defaults=True))
    text = json.dumps(chosen, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {_DIGEST: digest} if len(text) > _LONGEST else {_DIGEST: digest, "settings": chosen}


def _after(entry: dict[str, Any] | None) -> dict[str, Any]:
    found = None if entry is None else entry["after"]
    return found if isinstance(found, dict) else {}


def _flat(values: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Return settings by their whole names, without the secrets that addresses may hold."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{at}{name}.")
        else:
            found[f"{at}{name}"] = _cleared(value)
    return found


def _cleared(value: Any) -> Any:
    if isinstance(value, str):
        return _USER_INFO.sub("***@", value)
    return [_cleared(each) for each in value] if isinstance(value, list) else value


async def clean_up(audit: AuditLog, health: Health) -> None:
    """Delete what is too old, then check what is left. Raises DiskFull or DatabaseUnavailable."""
    await audit.prune()
    verdict = await audit.verify()
    if verdict.valid:
        health.recover(_CHECK, _PART)
        return
    log.error("the audit log is not whole", first_bad=verdict.first_bad, reason=verdict.reason)
    health.degrade(
        _CHECK,
        _PART,
        f"entry {verdict.first_bad} was changed, removed or forged; see `bitinglip audit verify`",
    )
