"""Tells which limits a request has: by its key's tier, its route, and the class of that."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from bitinglip.access.key_fields import OPERATOR, TIERS
from bitinglip.access.limits.gcra import SECOND, Rate
from bitinglip.errors import RateLimitExceeded
from bitinglip.settings import Tier
from bitinglip.settings.limits import Endpoint, Limits

MINUTE, HOUR = 60 * SECOND, 3600 * SECOND


class LimitClass(StrEnum):
    """Classes routes by what they cost; each route that needs a key declares one."""

    INFERENCE = "inference"  #: runs a model: the tier's rates, and one of its places
    STREAM = "stream"  #: follows a task over a WebSocket: one of the tier's places
    LIGHT = "light"  #: runs no model

    __hash__ = str.__hash__  # in C; looked up at each request


class Limit(NamedTuple):
    """Describes one rate of a policy; ``name`` is for headers, ``cell`` tells it from the key's
    others."""

    name: str
    cell: str
    rate: Rate


@dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """Holds the limits of one tier's requests to one route; made once, equal only to itself."""

    rates: tuple[Limit, ...] = ()
    places: int | None = None  #: requests at once
    capped: bool = True  #: whether the server's own cap of requests by key holds
    rank: int = 0  #: the tier's priority: under load lower ones keep less of their rates
    adaptive: bool = False  #: whether the rates shrink under load
    header: bytes = b""  #: RateLimit-Policy

    @property
    def limited(self) -> bool:
        return bool(self.rates or self.places or self.capped)


class Policies:
    """Makes the policies from the settings, each once."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._tiers = {name: getattr(limits.tiers, name) for name in TIERS}
        self._made: dict[tuple[str, LimitClass, str], Policy] = {}

    def of(self, tier: str, kind: LimitClass, route: str = "") -> Policy:
        """Return the policy of a tier's requests to a route, which is given by its template."""
        key = (tier, kind, route if route in self._limits.endpoints else "")
        if (found := self._made.get(key)) is None:
            found = self._made[key] = self._make(*key)
        return found

    def _make(self, name: str, kind: LimitClass, route: str) -> Policy:
        tier: Tier = self._tiers[name]
        endpoint = self._limits.endpoints.get(route)
        rates = [*self._of_tier(name, tier, kind)]
        if endpoint is not None and name != OPERATOR:
            rates += _of_endpoint(route, endpoint)
        places = None if kind is LimitClass.LIGHT else tier.concurrent_requests
        tokens = token_limit(tier) if kind is LimitClass.INFERENCE else None
        return Policy(
            rates=tuple(rates),
            places=places,
            capped=name != OPERATOR,
            rank=tier.priority,
            adaptive=kind is LimitClass.INFERENCE,
            header=policy_header(rates, places, tokens),
        )

    def _of_tier(self, name: str, tier: Tier, kind: LimitClass) -> Iterable[Limit]:
        if kind is not LimitClass.INFERENCE:
            most = self._limits.other_requests_per_minute
            if most is not None and name != OPERATOR:
                yield Limit("other", "other", Rate(most, MINUTE, most))
            return
        if (minute := tier.requests_per_minute) is not None:
            yield Limit("minute", "minute", Rate(minute, MINUTE, tier.burst or minute))
        if (hour := tier.requests_per_hour) is not None:
            yield Limit("hour", "hour", Rate(hour, HOUR, hour))


def _of_endpoint(route: str, endpoint: Endpoint) -> Iterable[Limit]:
    if (minute := endpoint.requests_per_minute) is not None:
        yield Limit("route-minute", f"{route}:minute", Rate(minute, MINUTE, minute))
    if (hour := endpoint.requests_per_hour) is not None:
        yield Limit("route-hour", f"{route}:hour", Rate(hour, HOUR, hour))


def token_limit(tier: Tier) -> Limit | None:
    """Return a tier's rate in tokens; None if it has none."""
    if (tokens := tier.tokens_per_minute) is None:
        return None
    return Limit(TOKENS, TOKENS, Rate(tokens, MINUTE, tokens))


def policy_header(
    rates: Iterable[Limit], places: int | None = None, tokens: Limit | None = None
) -> bytes:
    """Return the value of RateLimit-Policy."""
    items = []
    for name, _, rate in rates:
        burst = f";bl-burst={rate.burst}" if rate.burst != rate.quota else ""
        items.append(f'"{name}";q={rate.quota};w={rate.window // SECOND}{burst}')
    if tokens is not None:
        items.append(f'"{TOKENS}";q={tokens.rate.quota};w={MINUTE // SECOND};qu="tokens"')
    if places is not None:
        items.append(f'"{CONCURRENT}";q={places};qu="concurrent-requests"')
    return ", ".join(items).encode()


def rate_exceeded(text: str, names: Sequence[str], wait: int) -> RateLimitExceeded:
    """Return the refusal by these rates of a request that passes in ``wait`` microseconds."""
    wait_ms = -(-wait // 1000)
    return RateLimitExceeded(
        f"{text}; try again in {wait_ms / 1000:.1f} seconds.",
        details={"violated_policies": list(names), "retry_after_ms": wait_ms},
        retry_after=wait_ms / 1000,
    )


CONCURRENT = "concurrent"  #: the name of the limit of requests at once
TOKENS = "tokens"  #: the name of the rate in tokens
