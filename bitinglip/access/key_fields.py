"""Checks the fields of a key, from what was asked to what its row holds."""

from collections.abc import Callable
from typing import Any

from bitinglip.access.expiry import check_expiry
from bitinglip.access.narrowing import parse_models, parse_ranges
from bitinglip.access.scopes import parse_scopes
from bitinglip.access.usage.quotas import described, parse_quotas
from bitinglip.errors import InvalidRequest
from bitinglip.settings.guard import Mode
from bitinglip.telemetry.redaction import mask

#: the admin key's tier has no limits; those of the others are the limits' affair
OPERATOR = "operator"
TIERS = ("free", "pro", "enterprise", OPERATOR)  #: from the lowest to the highest


def checked_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a row for fields of a key. Raises InvalidRequest."""
    return {name: _CHECKS[name](value) for name, value in fields.items()}


def _checked_name(name: str) -> str:
    if not 1 <= len(name) <= 100 or not name.isprintable() or name.isspace():
        raise InvalidRequest("A name has 1 to 100 printable characters.", param="name")
    if mask(name) != name:  # it would be stored, listed and logged
        raise InvalidRequest("A name must not hold a key or a token.", param="name")
    return name


def _checked_tier(tier: str) -> str:
    if tier not in TIERS:
        raise InvalidRequest(
            f"There is no tier {tier[:50]!r}. Tiers are: {', '.join(TIERS)}.", param="tier"
        )
    return tier


def parse_guard(mode: str | None) -> Mode | None:
    """Check the least that is done about personal data. Raises InvalidRequest."""
    known: tuple[Mode, ...] = ("report", "redact", "block")
    if mode is None:
        return None
    for each in known:
        if each == mode:
            return each
    raise InvalidRequest(f"'guard' must be null or one of {', '.join(known)}.", param="guard")


def _listed(values: tuple[str, ...] | None) -> list[str] | None:
    return None if values is None else list(values)


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "name": _checked_name,
    "tier": _checked_tier,
    "scopes": lambda scopes: sorted(parse_scopes(scopes)),
    "expires_at": lambda moment: moment and check_expiry(moment),
    "models": lambda globs: _listed(parse_models(globs)),
    "quotas": lambda quotas: described(parse_quotas(quotas)),
    "guard": parse_guard,
    "ip_ranges": lambda ranges: _listed(parse_ranges(ranges)),
}
