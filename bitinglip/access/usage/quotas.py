"""Quotas say how much a key may use in a day and in a month of the calendar, in UTC. Pure.

A tier sets them, and a key may be narrowed further by its own: in each period and unit the smaller
one counts.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from bitinglip.access.usage.amounts import NAMES, SCALES
from bitinglip.errors import InvalidRequest
from bitinglip.settings.limits import Limits, Quotas

DAILY, MONTHLY = PERIODS = ("daily", "monthly")
MOST = 10**12  #: of a unit; in pixels or microseconds that still fits into 64 bits

#: the quotas of a key: period, unit, and how much of it, in the order of ``PERIODS`` and ``NAMES``
KeyQuotas = tuple[tuple[str, str, float], ...]


class Quota(NamedTuple):
    """Describes one quota as it is checked."""

    period: str
    unit: int  #: its index in ``NAMES``
    limit: int  #: in pixels or microseconds where the unit is megapixels or seconds

    @property
    def name(self) -> str:
        """Return its name in settings, keys and errors: ``daily.tokens``."""
        return f"{self.period}.{NAMES[self.unit]}"


#: all quotas that a key has; none for a key without any
Plan = tuple[Quota, ...]


class Plans:
    """Combines the quotas of tiers and keys, each combination once."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._made: dict[tuple[str, KeyQuotas | None], Plan] = {}

    def of(self, tier: str, own: KeyQuotas | None) -> Plan:
        """Return the quotas of a key of this tier that is narrowed so."""
        if (found := self._made.get((tier, own))) is None:
            found = self._made[tier, own] = self._make(tier, own)
        return found

    def _make(self, tier: str, own: KeyQuotas | None) -> Plan:
        granted = getattr(self._limits.tiers, tier)
        narrowed = {(period, unit): amount for period, unit, amount in own or ()}
        plan = []
        for period, of_tier in ((DAILY, granted.daily), (MONTHLY, granted.monthly)):
            for index, amount in enumerate(_amounts(of_tier)):
                both = (amount, narrowed.get((period, NAMES[index])))
                limits = [each for each in both if each is not None]
                if limits:
                    plan.append(Quota(period, index, round(min(limits) * SCALES[index])))
        return tuple(plan)


def _amounts(quotas: Quotas) -> tuple[float | None, ...]:
    """Return the amounts of settings in the order of ``NAMES``."""
    return (
        quotas.requests,
        quotas.tokens,
        quotas.megapixels,
        quotas.audio_seconds,
        quotas.gpu_seconds,
    )


def parse_quotas(given: Mapping[str, Any] | None) -> KeyQuotas | None:
    """Check the quotas of a key: ``{"daily": {"tokens": 1000}}``. Raises InvalidRequest.

    An amount outside of a period is a day's. None, and quotas that name no amount, narrow nothing.
    """
    found: dict[tuple[str, str], float] = {}
    for name, value in (given or {}).items():
        if name in PERIODS:
            amounts, period, path = value or {}, name, f"quotas.{name}."
        else:
            amounts, period, path = {name: value}, DAILY, "quotas."
        for unit, amount in amounts.items():
            if unit not in NAMES:
                raise _unknown(path + unit)
            if amount is None:
                continue
            if (period, unit) in found:
                raise InvalidRequest(f"'{path}{unit}' is set twice.", param=path + unit)
            found[period, unit] = _checked(amount, unit, path + unit)
    ordered = [(period, unit) for period in PERIODS for unit in NAMES if (period, unit) in found]
    return tuple((*each, found[each]) for each in ordered) or None


def described(quotas: KeyQuotas | None) -> dict[str, dict[str, float]] | None:
    """Write quotas as ``parse_quotas`` reads them."""
    if quotas is None:
        return None
    found: dict[str, dict[str, float]] = {}
    for period, unit, amount in quotas:
        found.setdefault(period, {})[unit] = amount
    return found


def quotas_within(asked: KeyQuotas | None, held: KeyQuotas | None) -> bool:
    """Return whether ``asked`` bounds each amount that ``held`` bounds, at no more."""
    amounts = {(period, unit): amount for period, unit, amount in asked or ()}
    return all(
        (period, unit) in amounts and amounts[period, unit] <= amount
        for period, unit, amount in held or ()
    )


def _checked(amount: Any, unit: str, param: str) -> float:
    whole = SCALES[NAMES.index(unit)] == 1
    kinds = (int,) if whole else (int, float)
    if not isinstance(amount, kinds) or isinstance(amount, bool) or not 0 <= amount <= MOST:
        number = "a whole number" if whole else "a number"
        raise InvalidRequest(f"'{param}' is {number} from 0 to {MOST}.", param=param)
    return amount


def _unknown(param: str) -> InvalidRequest:
    shown = param[:64]
    return InvalidRequest(f"'{shown}' is none of {', '.join(NAMES)}.", param=shown)
