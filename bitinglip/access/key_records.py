"""Holds what is known of a key: its record, its callers, and what requests are checked by."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NamedTuple

from bitinglip.access.credentials import Credential
from bitinglip.access.key_age import FOREVER, KeyAge
from bitinglip.access.key_fields import parse_guard
from bitinglip.access.narrowing import (
    address_allowed,
    model_allowed,
    parse_models,
    parse_ranges,
)
from bitinglip.access.scopes import Scope
from bitinglip.access.usage.quotas import KeyQuotas, parse_quotas
from bitinglip.db.tables import ApiKey
from bitinglip.settings.guard import Mode

NO_DIGEST = bytes(32)  # compared where there is no such key, so that a miss takes as long


class Retiring(NamedTuple):
    """A key came with a secret that was replaced, or that is to be replaced for its age."""

    since: datetime
    until: datetime  #: when it stops working


@dataclass(frozen=True, slots=True)
class Caller:
    """Describes the sender of a request, and what they may do."""

    key_id: str
    name: str
    tier: str
    scopes: frozenset[Scope]
    models: tuple[str, ...] | None = None  #: globs; None allows all
    ip_ranges: tuple[str, ...] | None = None  #: None allows all
    expires_at: datetime | None = None
    generation: int = 0  #: of the secret that was sent
    token: str = ""  #: the id of the token that was sent in place of the key
    retiring: Retiring | None = None
    quotas: KeyQuotas | None = None  #: of its own; None narrows nothing
    guard: Mode | None = None  #: the least that is done about personal data

    @property
    def credential(self) -> Credential:
        return Credential(self.key_id, self.generation, self.token)

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def may_use(self, model: str) -> bool:
        return model_allowed(self.models, model)

    def may_call_from(self, address: str) -> bool:
        return address_allowed(self.ip_ranges, address)


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """Shows a key without its secret and digest."""

    id: str
    name: str
    tier: str
    scopes: tuple[Scope, ...]
    last_four: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    models: tuple[str, ...] | None = None
    ip_ranges: tuple[str, ...] | None = None
    rotated_at: datetime | None = None
    grace_until: datetime | None = None  #: when the secret before the last rotation ends
    rotate_by: datetime | None = None  #: when the secret ends by its age
    quotas: KeyQuotas | None = None
    guard: Mode | None = None


@dataclass(slots=True)
class HeldKey:
    """Holds a key in memory."""

    record: KeyRecord
    digest: bytes
    caller: Caller
    ends: float  #: Unix time of the expiry, or of the end by age
    ageing: Caller  #: with a secret that is to be rotated
    ages: float  #: Unix time from which it is
    former_digest: bytes  #: of the secret before the last rotation
    former: Caller  #: with that secret
    former_ends: float  #: Unix time of the end of its grace
    used: float | None = None  #: Unix time of a use that is not in the database yet

    def present(self, now: float) -> Caller:
        """Return the caller with the present secret."""
        return self.caller if now < self.ages else self.ageing

    def renew(self, row: "HeldKey") -> None:
        """Take over what its row says; it may have been revoked, or used, meanwhile."""
        used = [at for at in (self.record.last_used_at, row.record.last_used_at) if at is not None]
        self.record = replace(
            row.record,
            revoked_at=self.record.revoked_at or row.record.revoked_at,
            last_used_at=max(used, default=None),
        )
        self.digest, self.caller, self.ends = row.digest, row.caller, row.ends
        self.ageing, self.ages = row.ageing, row.ages
        self.former_digest, self.former = row.former_digest, row.former
        self.former_ends = row.former_ends


def hold(row: ApiKey, age: KeyAge) -> HeldKey:
    scopes = frozenset(scope for scope in Scope if scope in row.scopes)
    models, ip_ranges = parse_models(row.models), parse_ranges(row.ip_ranges)
    quotas, guard = parse_quotas(row.quotas), parse_guard(row.guard)
    last = age.of(row.created_at, row.rotated_at)
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
        models=models,
        ip_ranges=ip_ranges,
        rotated_at=row.rotated_at,
        grace_until=row.grace_until,
        rotate_by=last and last.until,
        quotas=quotas,
        guard=guard,
    )
    caller = Caller(
        row.id,
        row.name,
        row.tier,
        scopes,
        models,
        ip_ranges,
        row.expires_at,
        row.generation,
        quotas=quotas,
        guard=guard,
    )
    former, former_ends = replace(caller, generation=row.generation - 1 or -1), 0.0
    if row.rotated_at and row.grace_until:
        former = replace(former, retiring=Retiring(row.rotated_at, row.grace_until))
        former_ends = row.grace_until.timestamp()
    ends = row.expires_at.timestamp() if row.expires_at else FOREVER
    ageing, ages = caller, FOREVER
    if last is not None:
        ageing, ages = replace(caller, retiring=Retiring(*last)), last.since.timestamp()
        ends = min(ends, last.until.timestamp())
    known = row.former_digest or NO_DIGEST
    return HeldKey(record, row.digest, caller, ends, ageing, ages, known, former, former_ends)


def shown(held: HeldKey) -> KeyRecord:
    if held.used is None:
        return held.record
    return replace(held.record, last_used_at=datetime.fromtimestamp(held.used, UTC))
