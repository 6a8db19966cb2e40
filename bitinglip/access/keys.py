"""The key ring checks keys in memory on every request, and stores them in the database."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from sqlmodel import col, select, update

from bitinglip.access import credentials
from bitinglip.access.admin_key import replace_admin_key
from bitinglip.access.credentials import Credential
from bitinglip.access.key_age import KeyAge
from bitinglip.access.key_audit import entry_of, shown_fields
from bitinglip.access.key_fields import OPERATOR as OPERATOR
from bitinglip.access.key_fields import checked_fields
from bitinglip.access.key_records import NO_DIGEST, HeldKey, hold, shown
from bitinglip.access.key_records import Caller as Caller
from bitinglip.access.key_records import KeyRecord as KeyRecord
from bitinglip.access.presented import Presented
from bitinglip.access.scopes import DEFAULT, Scope
from bitinglip.access.usage.quotas import KeyQuotas
from bitinglip.audit.entry import SERVER, Action, Actor
from bitinglip.audit.log import AuditLog
from bitinglip.db.database import Database
from bitinglip.db.files import DatabaseError
from bitinglip.db.loading import loading
from bitinglip.db.tables import ApiKey
from bitinglip.errors import (
    Conflict,
    ExpiredApiKey,
    InvalidApiKey,
    KeyNotFound,
)
from bitinglip.gateways.changes import KEYS, count_change
from bitinglip.home import Home
from bitinglip.private_files import replace_private

#: what the home's secret is derived for, to make the pepper of the digests
PEPPER = "api keys"
PEPPERS = select(ApiKey.pepper_id).where(col(ApiKey.revoked_at).is_(None)).distinct()
_log = logging.getLogger(__name__)


async def refuse_other_pepper(db: Database, pepper: bytes) -> None:
    """Raise DatabaseError where all keys that work were made with another secret.

    A server that went on with its own would seal the common audit log with it, too.
    """
    with loading("keys"):
        async with db.read() as session:
            found = list(await session.scalars(PEPPERS))
    check_pepper(found, pepper)


def check_pepper(found: Collection[str], pepper: bytes) -> None:
    """Raise DatabaseError if ``found``, which PEPPERS selects, are all of other secrets."""
    if found and credentials.pepper_id(pepper) not in found:
        raise DatabaseError(
            "This home's secret.key is not the one of the servers that share the database; move "
            "it away, and name theirs by gateways.secret_file, or copy it here"
        )


class KeyRing:
    """Holds all keys in memory; only changes go to the database too, each with its audit entry.

    ``by`` is who changes them.
    """

    def __init__(
        self,
        db: Database,
        pepper: bytes,
        audit: AuditLog,
        *,
        age: KeyAge | None = None,
        clock: Callable[[], float] = time.time,
        notify: Callable[[], None] = lambda: None,
    ) -> None:
        """``notify`` tells other servers that keys were written."""
        self._db = db
        self._pepper = pepper
        self._audit = audit
        self._age = age or KeyAge()
        self._clock = clock
        self._notify = notify
        self._keys: dict[str, HeldKey] = {}
        #: from a change in the database to that of what is held: what was read before is older
        self._changing = asyncio.Lock()
        self._presented: Presented[tuple[HeldKey, bool]] = Presented()

    @classmethod
    async def open(cls, db: Database, pepper: bytes, audit: AuditLog, **options: Any) -> Self:
        """Read every key that was ever made. Raises DatabaseError if one cannot be read.

        ``options``: those of the constructor.
        """
        ring = cls(db, pepper, audit, **options)
        with loading("keys"):
            rows = await ring._rows()
            ring._keys = {row.id: hold(row, ring._age) for row in rows}
        own = credentials.pepper_id(pepper)
        if lost := sum(row.pepper_id != own and row.revoked_at is None for row in rows):
            _log.warning("%d keys work no more: they were made with another secret.key", lost)
        return ring

    async def reload(self) -> None:
        """Read what other servers, or commands, have changed. Raises DatabaseUnavailable.

        A key that a newer version wrote in a way that this one cannot read is refused until it can.
        """
        async with self._changing:
            for row in await self._rows():
                held = self._keys.get(row.id)
                try:
                    read = hold(row, self._age)
                except Exception:  # noqa: BLE001  whatever it is, the other keys work
                    _log.exception("the key %s cannot be read and is refused", row.id)
                    if held is not None:
                        held.ends = held.former_ends = 0.0
                    continue
                if held is None:
                    self._keys[row.id] = read
                else:
                    held.renew(read)
            self._presented.forget()

    async def _rows(self) -> Sequence[ApiKey]:
        async with self._db.read() as session:
            return (await session.scalars(select(ApiKey).order_by("created_at", "id"))).all()

    def authenticate(self, credential: str) -> Caller:
        """Return the caller with this key. Raises InvalidApiKey or ExpiredApiKey."""
        held, current = self._presented.find(credential) or self._look_up(credential)
        if held.record.revoked_at is not None:
            raise InvalidApiKey
        now = self._clock()
        if held.ends <= now or not (current or held.former_ends > now):
            raise ExpiredApiKey
        held.used = now
        return held.present(now) if current else held.former

    def _look_up(self, credential: str) -> tuple[HeldKey, bool]:
        """Return a key, and whether this is its present secret. Raises InvalidApiKey."""
        key_id = credentials.parse(credential)
        if key_id is None:
            raise InvalidApiKey
        held = self._keys.get(key_id)
        digests = (held.digest, held.former_digest) if held else (NO_DIGEST, NO_DIGEST)
        current, former = credentials.matches(self._pepper, credential, *digests)
        if held is None or not (current or former):
            raise InvalidApiKey
        self._presented.remember(credential, (held, current))
        return held, current

    def caller(self, credential: Credential) -> Caller | None:
        """Return who has this key, with what they may do now, and count that as a use of the key.

        None if the key or the secret has ended.
        """
        held = self._keys.get(credential.key_id)
        if held is None or not self.is_valid(credential):
            return None
        held.used = now = self._clock()
        if credential.generation == held.former.generation:
            return held.former
        return held.present(now)

    def is_valid(self, credential: Credential) -> bool:
        """Return False for a key that is revoked or has expired, and for a secret that has ended.

        Anonymous callers have none.
        """
        held = self._keys.get(credential.key_id)
        if held is None:
            return True
        now = self._clock()
        if held.record.revoked_at is not None or held.ends <= now:
            return False
        if credential.generation in (0, held.caller.generation):
            return True
        return credential.generation == held.former.generation and held.former_ends > now

    def grants(self, key_id: str, scope: Scope, model: str) -> bool:
        """Return whether a key may use a model for what needs this scope.

        Anonymous callers may.
        """
        held = self._keys.get(key_id)
        return held is None or (held.caller.may(scope) and held.caller.may_use(model))

    def terms(self, key_id: str) -> tuple[str, KeyQuotas | None]:
        """Return the tier of a key and its own quotas; those of the operator for no key."""
        held = self._keys.get(key_id)
        return (OPERATOR, None) if held is None else (held.caller.tier, held.caller.quotas)

    async def create(
        self,
        *,
        name: str,
        scopes: Iterable[str] | None = None,
        tier: str = "free",
        by: Actor = SERVER,
        **narrowing: Any,
    ) -> tuple[KeyRecord, str]:
        """Make a key; return it and its text, which cannot be read again.

        Without ``scopes`` it has all but ``admin`` and ``cluster:write``. ``narrowing``: its
        expires_at, models, ip_ranges, quotas and guard. Raises InvalidRequest.
        """
        key = credentials.make()
        scopes = DEFAULT if scopes is None else scopes
        row = self._row(key, name=name, scopes=scopes, tier=tier, **narrowing)
        record = await self._add(row, by)
        assert record is not None, "only a first key may be one too many"
        return record, key.text

    async def change(self, key_id: str, *, by: Actor = SERVER, **fields: Any) -> KeyRecord:
        """Change fields of a key, as ``create`` names them; the next request meets them.

        Raises KeyNotFound, Conflict for a revoked key, or InvalidRequest.
        """
        values = checked_fields(fields)

        def apply(row: ApiKey) -> None:
            for field, value in values.items():
                setattr(row, field, value)

        return await self._update(key_id, apply, Action.KEY_UPDATE, by)

    async def rotate(
        self, key_id: str, grace: timedelta, home: Home, *, by: Actor = SERVER, once: bool = False
    ) -> tuple[KeyRecord, str]:
        """Give a key another secret; return its text. The former one ends after the grace.

        ``once``: raises Conflict if another server has rotated it meanwhile.

        A secret from before an earlier rotation ends at once. Raises KeyNotFound, or Conflict for
        a revoked key. The admin.key of the home is replaced if it holds this key.
        """
        held = self._find(key_id)
        key, generation = credentials.make(held.record.id), held.caller.generation
        now = datetime.fromtimestamp(self._clock(), UTC)

        def apply(row: ApiKey) -> None:
            if once and row.generation != generation:
                raise Conflict("The key was rotated by another server just now.")
            row.former_digest, row.digest = row.digest, credentials.digest(self._pepper, key.text)
            row.pepper_id = credentials.pepper_id(self._pepper)
            row.last_four = key.text[-4:]
            row.generation += 1
            row.rotated_at, row.grace_until = now, now + grace

        record = await self._update(key_id, apply, Action.KEY_ROTATE, by)
        await asyncio.to_thread(replace_admin_key, home, key)
        return record, key.text

    async def revoke(self, key_id: str, *, by: Actor = SERVER) -> KeyRecord:
        """End a key for good. It is refused at once, even if the database cannot be written."""
        held = self._find(key_id)
        revoked_at = held.record.revoked_at or datetime.now(UTC)
        held.record = replace(held.record, revoked_at=revoked_at)
        async with self._db.write() as session:
            row = await session.get_one(ApiKey, key_id)
            before, row.revoked_at = shown_fields(row), revoked_at
            await count_change(session, KEYS)
            await self._audit.append(session, entry_of(Action.KEY_REVOKE, row, by, before))
        self._notify()
        return shown(held)

    def list(self) -> list[KeyRecord]:
        """List every key ever made, the oldest first."""
        return [shown(held) for held in self._keys.values()]

    def get(self, key_id: str) -> KeyRecord:
        return shown(self._find(key_id))

    async def ensure_admin_key(self, home: Home) -> str | None:
        """Make the operator's key and admin.key on the first start; return its text to print."""
        if self._keys:
            return None
        key = credentials.make()
        row = self._row(key, name="admin", scopes=[Scope.ADMIN], tier=OPERATOR)
        # The file first: a crash in between leaves a file that the next start replaces, and not a
        # key that does not exist.
        replace_private(home.admin_key, f"{key.text}\n".encode())
        if await self._add(row, SERVER, first=True) is None:  # another server was first
            home.admin_key.unlink(missing_ok=True)
            await self.reload()
            return None
        return key.text

    async def flush_last_used(self) -> None:
        """Write the times of use. Raises DiskFull or DatabaseUnavailable, and keeps them then."""
        used = {key_id: held.used for key_id, held in self._keys.items() if held.used is not None}
        if not used:
            return
        moments = {key_id: datetime.fromtimestamp(at, UTC) for key_id, at in used.items()}
        async with self._db.write() as session:
            await session.execute(
                update(ApiKey), [{"id": i, "last_used_at": at} for i, at in moments.items()]
            )
        for key_id, at in used.items():
            held = self._keys[key_id]
            held.record = replace(held.record, last_used_at=moments[key_id])
            if held.used == at:
                held.used = None

    def _find(self, key_id: str) -> HeldKey:
        if (held := self._keys.get(key_id)) is None:
            raise KeyNotFound
        return held

    def _row(self, key: credentials.NewCredential, **fields: Any) -> ApiKey:
        return ApiKey(
            id=key.id,
            digest=credentials.digest(self._pepper, key.text),
            pepper_id=credentials.pepper_id(self._pepper),
            last_four=key.text[-4:],
            created_at=datetime.now(UTC),
            **checked_fields(fields),
        )

    async def _add(self, row: ApiKey, by: Actor, *, first: bool = False) -> KeyRecord | None:
        """Enter a key; ``first``: unless there is another one, then None is returned."""
        async with self._changing:
            async with self._db.write() as session:
                if first and (await session.scalars(select(ApiKey).limit(1))).first() is not None:
                    return None
                session.add(row)
                await count_change(session, KEYS)
                await self._audit.append(session, entry_of(Action.KEY_CREATE, row, by))
            held = self._keys[row.id] = hold(row, self._age)
        self._notify()
        return held.record

    async def _update(
        self, key_id: str, apply: Callable[[ApiKey], None], action: Action, by: Actor
    ) -> KeyRecord:
        """Change a key's row, then what is held of it."""
        held = self._find(key_id)
        async with self._changing:
            async with self._db.write() as session:
                row = await session.get_one(ApiKey, key_id)
                if held.record.revoked_at is not None or row.revoked_at is not None:
                    raise Conflict("The key is revoked.")
                before = shown_fields(row)
                apply(row)
                await count_change(session, KEYS)
                await self._audit.append(session, entry_of(action, row, by, before))
            held.renew(hold(row, self._age))
            self._presented.forget()
        self._notify()
        return shown(held)
