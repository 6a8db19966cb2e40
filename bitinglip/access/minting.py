"""A key grants to other keys only what it holds itself."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from bitinglip.access.key_fields import TIERS, checked_fields
from bitinglip.access.keys import Caller, KeyRecord
from bitinglip.access.narrowing import models_within, ranges_within
from bitinglip.access.scopes import Scope, parse_scopes
from bitinglip.access.usage.quotas import KeyQuotas, parse_quotas, quotas_within
from bitinglip.errors import InsufficientScope
from bitinglip.settings.guard import MODES, Mode


@dataclass(frozen=True, slots=True)
class Grant:
    """Holds what a key allows; None narrows nothing, and is no end."""

    scopes: frozenset[Scope]
    tier: str
    models: tuple[str, ...] | None
    ip_ranges: tuple[str, ...] | None
    expires_at: datetime | None
    quotas: KeyQuotas | None
    guard: Mode | None  #: the least that is done about personal data


def grant_of(key: Caller | KeyRecord) -> Grant:
    """Return what the key of a caller, or of a record, allows."""
    return Grant(
        scopes=frozenset(key.scopes),
        tier=key.tier,
        models=key.models,
        ip_ranges=key.ip_ranges,
        expires_at=key.expires_at,
        quotas=key.quotas,
        guard=key.guard,
    )


def granted(present: Grant, fields: dict[str, Any]) -> Grant:
    """Return what a key allows once these fields are changed. Raises InvalidRequest."""
    names = Grant.__slots__
    asked = checked_fields({name: fields[name] for name in names if name in fields})
    if "scopes" in asked:
        asked["scopes"] = parse_scopes(asked["scopes"])
    for name in ("models", "ip_ranges"):
        if asked.get(name) is not None:
            asked[name] = tuple(asked[name])
    if "quotas" in asked:
        asked["quotas"] = parse_quotas(asked["quotas"])
    return replace(present, **asked)


def check_grants(caller: Caller, asked: Grant) -> None:
    """Raise InsufficientScope if a key would allow more than the caller's own."""
    if caller.token:
        raise InsufficientScope("Keys are made and changed with a key, not with a token.")
    held = grant_of(caller)
    admin = Scope.ADMIN in held.scopes
    for param, within in (
        ("scopes", admin or asked.scopes <= held.scopes),
        ("tier", TIERS.index(asked.tier) <= TIERS.index(held.tier)),
        ("models", models_within(asked.models, held.models)),
        ("ip_ranges", ranges_within(asked.ip_ranges, held.ip_ranges)),
        ("guard", MODES.index(asked.guard or "off") >= MODES.index(held.guard or "off")),
        ("quotas", quotas_within(asked.quotas, held.quotas)),
        ("expires", _ends_before(asked.expires_at, held.expires_at)),
    ):
        if not within:
            raise InsufficientScope(
                f"A key grants only what it holds itself; '{param}' goes beyond that.", param=param
            )


def _ends_before(asked: datetime | None, held: datetime | None) -> bool:
    return held is None or (asked is not None and asked <= held)
