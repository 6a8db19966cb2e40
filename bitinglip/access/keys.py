"""The key ring checks keys in memory on every request, and stores them in the database."""

import hmac
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Self

from sqlmodel import select, update

from bitinglip.access import credentials
from bitinglip.access.expiry import check_expiry
from bitinglip.access.scopes import DEFAULT, Scope, parse_scopes
from bitinglip.db.database import Database
from bitinglip.db.files import DatabaseError
from bitinglip.db.tables import ApiKey
from bitinglip.errors import (
    DatabaseUnavailable,
    ExpiredApiKey,
    InvalidApiKey,
    InvalidRequest,
    KeyNotFound,
)
from bitinglip.home import Home, replace_private

#: what the home's secret is derived for, to make the pepper of the digests
PEPPER = "api keys"
#: the admin key's tier has no limits; those of the others are the limits' affair
OPERATOR = "operator"
TIERS = ("free", "pro", "enterprise", OPERATOR)

_NOBODY = bytes(32)  # compared with where there is no such key, so that a miss costs the same
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request, and what they may do."""

    key_id: str
    name: str
    tier: str
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key as it may be shown: without its secret and digest."""

    id: str
    name: str
    tier: str
    scopes: tuple[Scope, ...]
    last_four: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


@dataclass(slots=True)
class _Held:
    """A key that is held in memory."""

    record: KeyRecord
    digest: bytes
    caller: Caller
    ends: float  #: Unix time of the expiry
    used: float | None = None  #: Unix time of a use that is not in the database yet


class KeyRing:
    """Holds all keys in memory; only changes go to the database too."""

    def __init__(self, db: Database, pepper: bytes) -> None:
        self._db = db
        self._pepper = pepper
        self._keys: dict[str, _Held] = {}

    @classmethod
    async def open(cls, db: Database, pepper: bytes) -> Self:
        """Read every key that was ever made. Raises DatabaseError if one cannot be read."""
        ring = cls(db, pepper)
        try:
            async with db.read() as session:
                rows = (await session.scalars(select(ApiKey).order_by("created_at", "id"))).all()
            ring._keys = {row.id: _hold(row) for row in rows}
        except (ValueError, TypeError, DatabaseUnavailable) as error:
            raise DatabaseError(
                "the table of keys is damaged; restore a backup (see README, Backups)"
            ) from error
        own = credentials.pepper_id(pepper)
        if lost := sum(row.pepper_id != own and row.revoked_at is None for row in rows):
            _log.warning("%d keys work no more: they were made with another secret.key", lost)
        return ring

    def authenticate(self, credential: str) -> Caller:
        """Return the caller with this key. Raises InvalidApiKey or ExpiredApiKey."""
        key_id = credentials.parse(credential)
        if key_id is None:
            raise InvalidApiKey
        held = self._keys.get(key_id)
        known = held.digest if held else _NOBODY
        matches = hmac.compare_digest(credentials.digest(self._pepper, credential), known)
        if held is None or not matches or held.record.revoked_at is not None:
            raise InvalidApiKey
        now = time.time()
        if held.ends <= now:
            raise ExpiredApiKey
        held.used = now
        return held.caller

    def is_valid(self, key_id: str) -> bool:
        """Return False for a key that is revoked or has expired. Anonymous callers have none."""
        held = self._keys.get(key_id)
        return held is None or (held.record.revoked_at is None and held.ends > time.time())

    async def create(
        self,
        *,
        name: str,
        scopes: Iterable[str] | None = None,
        tier: str = "free",
        expires_at: datetime | None = None,
    ) -> tuple[KeyRecord, str]:
        """Make a key; return it and its text, which cannot be read again.

        Without ``scopes`` it has all but ``admin`` and ``cluster:write``.
        """
        key = credentials.make()
        row = self._row(key, name=name, scopes=scopes, tier=tier, expires_at=expires_at)
        return await self._add(row), key.text

    async def revoke(self, key_id: str) -> KeyRecord:
        """End a key for good. It is refused at once, even if the database cannot be written."""
        held = self._find(key_id)
        revoked_at = held.record.revoked_at or datetime.now(UTC)
        held.record = replace(held.record, revoked_at=revoked_at)
        async with self._db.write() as session:
            row = await session.get_one(ApiKey, key_id)
            row.revoked_at = revoked_at
        return _shown(held)

    def list(self) -> list[KeyRecord]:
        """List every key ever made, the oldest first."""
        return [_shown(held) for held in self._keys.values()]

    def get(self, key_id: str) -> KeyRecord:
        return _shown(self._find(key_id))

    async def ensure_admin_key(self, home: Home) -> str | None:
        """Make the operator's key and admin.key on the first start; return its text to print."""
        if self._keys:
            return None
        key = credentials.make()
        row = self._row(key, name="admin", scopes=[Scope.ADMIN], tier=OPERATOR, expires_at=None)
        # The file first: a crash in between leaves a file that the next start replaces, and not a
        # key that nobody has.
        replace_private(home.admin_key, f"{key.text}\n".encode())
        await self._add(row)
        return key.text

    async def flush_last_used(self) -> None:
        """Write the times of use since the last flush, all in one transaction.

        Raises DiskFull or DatabaseUnavailable; the times are kept for the next flush then.
        """
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

    def _find(self, key_id: str) -> _Held:
        if (held := self._keys.get(key_id)) is None:
            raise KeyNotFound
        return held

    def _row(
        self,
        key: credentials.NewCredential,
        *,
        name: str,
        scopes: Iterable[str] | None,
        tier: str,
        expires_at: datetime | None,
    ) -> ApiKey:
        return ApiKey(
            id=key.id,
            name=_checked_name(name),
            digest=credentials.digest(self._pepper, key.text),
            pepper_id=credentials.pepper_id(self._pepper),
            last_four=key.text[-4:],
            scopes=sorted(DEFAULT if scopes is None else parse_scopes(scopes)),
            tier=_checked_tier(tier),
            created_at=datetime.now(UTC),
            expires_at=expires_at and check_expiry(expires_at),
        )

    async def _add(self, row: ApiKey) -> KeyRecord:
        async with self._db.write() as session:
            session.add(row)
        held = self._keys[row.id] = _hold(row)
        return held.record


def _checked_name(name: str) -> str:
    if not 1 <= len(name) <= 100 or not name.isprintable() or name.isspace():
        raise InvalidRequest("A name has 1 to 100 printable characters.", param="name")
    return name


def _checked_tier(tier: str) -> str:
    if tier not in TIERS:
        raise InvalidRequest(
            f"There is no tier {tier[:50]!r}. Tiers are: {', '.join(TIERS)}.", param="tier"
        )
    return tier


def _hold(row: ApiKey) -> _Held:
    scopes = frozenset(scope for scope in Scope if scope in row.scopes)
    record = KeyRecord(
        id=row.id,
        name=row.name,
        tier=row.tier,
        scopes=tuple(scope for scope in Scope if scope in scopes),
        last_four=row.last_four,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )
    ends = row.expires_at.timestamp() if row.expires_at else float("inf")
    return _Held(record, row.digest, Caller(row.id, row.name, row.tier, scopes), ends)


def _shown(held: _Held) -> KeyRecord:
    if held.used is None:
        return held.record
    return replace(held.record, last_used_at=datetime.fromtimestamp(held.used, UTC))
