"""Secrets of keys grow old: from some age on they are announced to end, then they end.

The age counts from the key's creation, or from its last rotation. The key in the home's admin.key
is rotated in time by the server itself, so that no operator is shut out.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import structlog

from bitinglip.access import credentials
from bitinglip.access.expiry import LONGEST_GRACE
from bitinglip.errors import Conflict
from bitinglip.home import Home
from bitinglip.settings import KeyRotation

if TYPE_CHECKING:
    from bitinglip.access.key_records import KeyRecord
    from bitinglip.access.keys import KeyRing

log = structlog.get_logger(__name__)

CHECK_SECONDS = 600.0  #: between two looks for keys that are to be rotated
_LONGEST_NOTICE = timedelta(days=14)  #: where the settings leave it open
FOREVER = float("inf")


class Ageing(NamedTuple):
    """Describes the last part of a secret's life, in which its end is announced."""

    since: datetime
    until: datetime


class KeyAge:
    """Knows when secrets end by the settings."""

    def __init__(self, rotation: KeyRotation | None = None) -> None:
        max_age = rotation.max_age if rotation is not None else None
        self._life = None if max_age is None else timedelta(seconds=max_age)
        notice = rotation.notice if rotation is not None else None
        self._notice = None if notice is None else timedelta(seconds=notice)

    def of(self, created_at: datetime, rotated_at: datetime | None) -> Ageing | None:
        """Return when a secret's end is announced, and when it comes; None for no end."""
        if self._life is None:
            return None
        until = (rotated_at or created_at) + self._life
        notice = self._notice
        if notice is None:
            notice = min(_LONGEST_NOTICE, self._life / 4)
        return Ageing(until - notice, until)


class Rotation:
    """Rotates the key of admin.key in time, and tells the log which others are to be rotated."""

    def __init__(
        self, keys: "KeyRing", age: KeyAge, home: Home, clock: Callable[[], float] = time.time
    ) -> None:
        self._keys = keys
        self._age = age
        self._home = home
        self._clock = clock
        self._told: set[tuple[str, datetime, bool]] = set()

    async def check(self) -> None:
        """Look at all keys once. Raises OSError, DiskFull or DatabaseUnavailable."""
        now = datetime.fromtimestamp(self._clock(), UTC)
        own: str | None = None
        for record in self._keys.list():
            ageing = self._age.of(record.created_at, record.rotated_at)
            if ageing is None or ageing.since > now or not _lives(record, now):
                continue
            if own is None:
                own = await asyncio.to_thread(_admin_key_id, self._home)
            if record.id == own:
                grace = max(timedelta(), min(ageing.until - now, LONGEST_GRACE))
                with suppress(Conflict):  # its own admin.key has the secret then
                    await self._keys.rotate(record.id, grace, self._home, once=True)
                    log.info("the key in admin.key was rotated, for its age", key=record.id)
            else:
                self._tell(record, ageing.until, ended=ageing.until <= now)

    def _tell(self, record: "KeyRecord", until: datetime, *, ended: bool) -> None:
        """Warn of a key, once of its coming end and once of its end."""
        if (record.id, until, ended) in self._told:
            return
        self._told.add((record.id, until, ended))
        what = "an API key has ended by its age" if ended else "an API key is to be rotated"
        log.warning(what, key=record.id, name=record.name, until=until.isoformat())


def _lives(record: "KeyRecord", now: datetime) -> bool:
    """Return whether a key would work if it were young."""
    return record.revoked_at is None and (record.expires_at is None or record.expires_at > now)


def _admin_key_id(home: Home) -> str:
    """Return the id of the key in admin.key; empty without one."""
    try:
        return credentials.parse(home.admin_key.read_text("ascii").strip()) or ""
    except (FileNotFoundError, ValueError):
        return ""
