"""Limits tokens: a request takes what it may use at most, and what it does not use comes back.

So no request passes that the rate could not bear in the end, and none pays for tokens that it did
not use. One that may use more than the whole burst takes all of it.
"""

from collections.abc import Callable
from typing import NamedTuple

from bitinglip.access.limits.gcra import SECOND, Reading
from bitinglip.access.limits.headers import Headers, duration
from bitinglip.access.limits.policy import TOKENS, Limit, rate_exceeded, token_limit
from bitinglip.access.limits.store import Cell, MemoryStore
from bitinglip.access.shared.limits import RateRequest, SharedLimits
from bitinglip.errors import RateLimitExceeded
from bitinglip.settings.limits import Limits


class TakenTokens(NamedTuple):
    """Holds what a request has taken of its key's rate."""

    cell: Cell
    tokens: int
    key_id: str = ""  #: where it was taken from a rate that gateways share


class TokenRates:
    """Holds the tokens of keys; ``tier_of`` returns the tier of a key by its id."""

    def __init__(
        self,
        limits: Limits,
        tier_of: Callable[[str], str],
        store: MemoryStore,
        *,
        clock: Callable[[], int],
    ) -> None:
        self._by_tier = {name: token_limit(tier) for name, tier in limits.tiers}
        self._tier_of = tier_of
        self._store = store
        self._clock = clock
        self.shared: SharedLimits | None = None  #: set where gateways share the rates

    def limit(self, key_id: str) -> Limit | None:
        """Return the rate of a key; None if it has none."""
        return self._by_tier[self._tier_of(key_id)]

    def has_limit(self, tier: str) -> bool:
        """Return whether the keys of a tier have a rate."""
        return self._by_tier[tier] is not None

    def take(self, key_id: str, tokens: int) -> TakenTokens | None:
        """Take tokens for a request. Raises RateLimitExceeded, and takes nothing then."""
        limit = self.limit(key_id)
        if limit is None or tokens < 1:
            return None
        cost = min(tokens, limit.rate.burst)
        cell = _cell(key_id, limit)
        decision = self._store.take_now([cell], self._clock(), cost=cost)
        if decision.wait:
            raise refused_tokens(limit, cost, decision.wait)
        return TakenTokens(cell, cost)

    def asked(self, key_id: str, tokens: int) -> RateRequest | None:
        """Return what ``take`` would take, for a rate that gateways share."""
        limit = self.limit(key_id)
        if limit is None or tokens < 1:
            return None
        return RateRequest(_cell(key_id, limit), min(tokens, limit.rate.burst))

    def mirror(self, cell: Cell, wait: int) -> None:
        """Note what gateways together have left, for headers and for when they cannot ask."""
        self._store.restore({cell.id: self._clock() + wait})

    def settle(self, taken: TakenTokens, used: int) -> None:
        """Give back what a request has not used; what it has used beyond that is taken, too."""
        self._store.refund([taken.cell], cost=taken.tokens - used)
        if taken.key_id and self.shared is not None:
            self.shared.give(taken.key_id, [RateRequest(taken.cell, taken.tokens - used)])

    def read(self, key_id: str) -> Reading | None:
        """Return what is left of a key's rate; None if it has none."""
        limit = self.limit(key_id)
        if limit is None:
            return None
        return self._store.take_now([_cell(key_id, limit)], self._clock(), cost=0).readings[0]

    def headers(self, key_id: str) -> Headers:
        """Return the headers of a response, in both families; none for a key without such a rate.

        They are made when the response begins, after its request has taken its tokens.
        """
        limit, left = self.limit(key_id), self.read(key_id)
        if limit is None or left is None:
            return ()
        wait = -(-left.next_unit // SECOND)
        return (
            (b"ratelimit", b'"%b";r=%d;t=%d' % (TOKENS.encode(), left.remaining, wait)),
            (b"x-ratelimit-limit-tokens", b"%d" % limit.rate.quota),
            (b"x-ratelimit-remaining-tokens", b"%d" % left.remaining),
            (b"x-ratelimit-reset-tokens", duration(left.reset)),
        )


def _cell(key_id: str, limit: Limit) -> Cell:
    return Cell(f"{key_id}:{limit.cell}", limit.rate)


def refused_tokens(limit: Limit, cost: int, wait: int) -> RateLimitExceeded:
    """Return the refusal of a request for so many tokens, which passes in ``wait`` microseconds."""
    text = (
        f"This API key may use {limit.rate.quota} tokens in a minute, and this request up to "
        f"{cost} of them"
    )
    return rate_exceeded(text, [TOKENS], wait)
