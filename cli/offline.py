"""Works directly on the store and the database of a home that no server runs on.

What is returned has the same shape as the API's answers.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cli.errors import Failure
from cli.show.output import print_note

if TYPE_CHECKING:
    from bitinglip.access.keys import KeyRing
    from bitinglip.audit.entry import Actor
    from bitinglip.audit.log import AuditLog
    from bitinglip.db.database import Database
    from bitinglip.home import Home
    from bitinglip.settings import KeyRotation
    from cli.context import CliContext
    from model_store.manifest import Manifest
    from model_store.store import ModelStore

T = TypeVar("T")
_PAGE = 1000


def store(home: "Home", *, confine: str = "auto") -> "ModelStore":
    from model_store.store import ModelStore

    return ModelStore(home.models, confine=confine)


# ---- models: looking needs no lock, changing does ------------------------------------------------


def models(home: "Home") -> list[dict[str, Any]]:
    if not home.models.is_dir():
        return []
    opened = store(home)
    return [_model(opened, found) for found in opened.list()]


def model(home: "Home", name: str) -> dict[str, Any]:
    found = manifest(home, name)
    return _model(store(home), found)


def manifest(home: "Home", name: str) -> "Manifest":
    names = store(home).names() if home.models.is_dir() else []
    if not names:
        raise Failure("the store is empty; `bitinglip models pull REPO` brings a model")
    if name not in names:
        raise Failure(f"there is no model {name!r}; available: {', '.join(names)}")
    return store(home).get(name)


def import_model(
    home: "Home", folder: Path, name: str, *, allow_pickles: bool, base: str | None, confine: str
) -> dict[str, Any]:
    from bitinglip.home import HomeLock

    home.create()
    with HomeLock(home):
        store(home, confine=confine).import_folder(
            folder, name, allow_pickles=allow_pickles, base=base
        )
        enter(home, "model.import", name, after=model_facts(manifest(home, name)))
    return model(home, name)


def remove_model(home: "Home", name: str) -> None:
    from bitinglip.home import HomeLock

    found = manifest(home, name)
    with HomeLock(home):
        store(home).remove(name)
        enter(home, "model.remove", name, before=model_facts(found))


def _model(opened: "ModelStore", found: "Manifest") -> dict[str, Any]:
    from bitinglip.wire.admin.models import model_info
    from bitinglip.wire.admin.store_care import care_info

    told = model_info(found, status="available", cause=None, ready=None, progress=None, replicas=0)
    return {**told, **care_info(opened.usage(found.name), opened.care(found.name))}


# ---- keys: one process at a time may have the database -------------------------------------------


def keys(place: "CliContext", rotation: "KeyRotation | None" = None) -> list[dict[str, Any]]:
    """List all keys; ``rotation``: the setting that tells when each is to be rotated."""
    from bitinglip.wire.admin.keys import key_info

    if not _has_database(place):
        return []

    async def listed(ring: "KeyRing") -> list[dict[str, Any]]:
        return [key_info(record) for record in ring.list()]

    return _with_keys(place, listed, rotation)


def key(place: "CliContext", key_id: str, rotation: "KeyRotation | None" = None) -> dict[str, Any]:
    from bitinglip.errors import KeyNotFound

    found = [record for record in keys(place, rotation) if record["id"] == key_id]
    if not found:
        raise KeyNotFound
    return found[0]


def create_key(place: "CliContext", body: dict[str, Any]) -> dict[str, Any]:
    """Create a key as the API does from this body; its secret is under ``key``."""
    from bitinglip.access.expiry import parse_expiry
    from bitinglip.wire.admin.keys import key_info

    async def created(ring: "KeyRing") -> dict[str, Any]:
        # A first start makes the admin key only where there is no key at all.
        if await ring.ensure_admin_key(place.home):
            print_note(f"Made the admin key, too: {place.home.admin_key}")
        record, secret = await ring.create(
            name=body["name"],
            tier=body.get("tier") or "free",
            scopes=body.get("scopes"),
            expires_at=parse_expiry(body["expires"]) if body.get("expires") else None,
            models=body.get("models"),
            ip_ranges=body.get("ip_ranges"),
            quotas=body.get("quotas"),
            guard=body.get("guard"),
            by=_actor(),
        )
        return {**key_info(record), "key": secret}

    return _with_keys(place, created)


def change_key(place: "CliContext", key_id: str, body: dict[str, Any]) -> dict[str, Any]:
    """Change a key as the API does with this body."""
    import json

    from bitinglip.wire.admin.keys import ChangeKeyRequest, key_info
    from bitinglip.wire.parse import parse

    async def changed(ring: "KeyRing") -> dict[str, Any]:
        return key_info(await ring.change(key_id, by=_actor(), **asked.changes()))

    asked = parse(ChangeKeyRequest, json.dumps(body).encode())
    key(place, key_id)
    return _with_keys(place, changed)


def rotate_key(place: "CliContext", key_id: str, grace: str) -> dict[str, Any]:
    """Give a key a new secret, as the API does; it is under ``key``."""
    from bitinglip.access.expiry import parse_grace
    from bitinglip.wire.admin.keys import key_info

    async def rotated(ring: "KeyRing") -> dict[str, Any]:
        record, secret = await ring.rotate(key_id, parse_grace(grace), place.home, by=_actor())
        return {**key_info(record), "key": secret}

    key(place, key_id)
    return _with_keys(place, rotated)


def revoke_key(place: "CliContext", key_id: str) -> None:
    key(place, key_id)

    async def revoked(ring: "KeyRing") -> None:
        await ring.revoke(key_id, by=_actor())

    _with_keys(place, revoked)


def usage(place: "CliContext", query: dict[str, str]) -> list[dict[str, Any]]:
    """Return the sums of usage that a query of the API asks for."""
    from bitinglip.access.usage.meter import Meter
    from bitinglip.access.usage.rows import UsageRows
    from bitinglip.wire.admin.usage import wanted_usage

    wanted = wanted_usage(query, query.get("key_id"))
    if not _has_database(place):
        return []

    async def summed(db: "Database", audit: "AuditLog") -> list[dict[str, Any]]:
        ring = await _key_ring(place, db, audit)
        stored = UsageRows(db, Meter())
        rows: list[dict[str, Any]] = []
        while True:
            part, total = await stored.page(wanted, limit=_PAGE, offset=len(rows))
            rows += part
            if not part or len(rows) >= total:
                break
        names = {record.id: record.name for record in ring.list()}
        return [
            {**row, "key_name": names.get(row["key_id"])} if "key_id" in row else row
            for row in rows
        ]

    return _with_database(place, summed)


def _with_keys(
    place: "CliContext",
    work: "Callable[[KeyRing], Awaitable[T]]",
    rotation: "KeyRotation | None" = None,
) -> T:
    async def run(db: "Database", audit: "AuditLog") -> T:
        return await work(await _key_ring(place, db, audit, rotation))

    return _with_database(place, run)


async def _key_ring(
    place: "CliContext", db: "Database", audit: "AuditLog", rotation: "KeyRotation | None" = None
) -> "KeyRing":
    from bitinglip.access.key_age import KeyAge
    from bitinglip.access.keys import PEPPER, KeyRing

    return await KeyRing.open(db, place.home.secret(PEPPER), audit, age=KeyAge(rotation))


# ---- the audit log -------------------------------------------------------------------------------


def audit_entries(
    place: "CliContext", wanted: dict[str, str], limit: int
) -> tuple[list[dict[str, Any]], int]:
    """Return the newest entries that the API's filters select, and how many there are."""
    from bitinglip.audit.query import parse_filter

    selected = parse_filter(wanted)

    async def listed(_db: "Database", audit: "AuditLog") -> tuple[list[dict[str, Any]], int]:
        await audit.flush()  # what commands have left
        return await audit.list(selected, limit=limit)

    return _with_database(place, listed) if _has_entries(place) else ([], 0)


def verify_audit(place: "CliContext") -> dict[str, Any]:
    """Check the audit log; the same object as the API's."""

    async def checked(_db: "Database", audit: "AuditLog") -> dict[str, Any]:
        await audit.flush()
        verdict = await audit.verify()
        return {"valid": verdict.valid, "rows": verdict.rows, "first_bad": verdict.first_bad}

    if not _has_entries(place):
        return {"valid": True, "rows": 0, "first_bad": None}
    return _with_database(place, checked)


def enter(
    home: "Home",
    action: str,
    target: str,
    *,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> None:
    """Leave an audit entry of what a command did to the home's files."""
    from bitinglip.audit.chain import SEALING
    from bitinglip.audit.entry import Action, Entry
    from bitinglip.audit.inbox import put

    entry = Entry(Action(action), _actor(), target, before=before, after=after)
    put(home.audit, home.secret(SEALING), entry)


def model_facts(found: "Manifest") -> dict[str, Any]:
    """Return what the audit log tells of a model that came or went."""
    return {name: getattr(found, name) for name in ("kind", "source", "revision", "total_bytes")}


def _has_database(place: "CliContext") -> bool:
    return place.home.database.exists() or place.settings().database.url is not None


def _has_entries(place: "CliContext") -> bool:
    return _has_database(place) or place.home.audit.is_dir()


def _actor() -> "Actor":
    from bitinglip.audit.entry import cli_actor

    return cli_actor()


def _with_database(place: "CliContext", work: "Callable[[Database, AuditLog], Awaitable[T]]") -> T:
    import asyncio

    from bitinglip.home import HomeLock

    async def run() -> T:
        from bitinglip.audit.chain import SEALING
        from bitinglip.audit.log import AuditLog
        from bitinglip.db.database import Database

        db = await Database.open(place.home.database, settings=settings)
        audit = AuditLog(db, place.home.secret(SEALING), folder=place.home.audit)
        try:
            done = await work(db, audit)
            await audit.flush()
            return done
        finally:
            await db.close()

    settings = place.settings().database
    place.home.create()
    with HomeLock(place.home):
        return asyncio.run(run())
