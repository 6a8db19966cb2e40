"""Limits wrong credentials by the client's address, in a table of bounded size."""

import asyncio
import ipaddress
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING

from bitinglip.access.limits.admission import now
from bitinglip.access.limits.gcra import Rate
from bitinglip.access.limits.headers import Headers, limit_headers
from bitinglip.access.limits.policy import MINUTE, Limit, Policy, policy_header, rate_exceeded
from bitinglip.access.limits.store import Cell, MemoryStore
from bitinglip.access.shared.limits import RateRequest, SharedLimits
from bitinglip.errors import BitingLipError
from bitinglip.redis.errors import RedisAway

if TYPE_CHECKING:
    from bitinglip.access.shared.counts import SharedCounts

_MOST_ADDRESSES = 10_000
_NAME = "failed-logins"
_NETWORK_BITS = 64  #: of IPv6: what one client has for itself


class FailedLogins:
    """Counts failures only: behind one address others' wrong keys shut no valid one out.

    Those of other gateways are learned of with the next failure here, which does not wait for it.
    """

    def __init__(
        self,
        per_minute: int | None,
        shared_counts: "SharedCounts | None" = None,
        *,
        clock: Callable[[], int] = now,
    ) -> None:
        self._shared = None if shared_counts is None else shared_counts.limits
        self._asking: set[asyncio.Task[None]] = set()
        self._rate = None if per_minute is None else Rate(per_minute, MINUTE, per_minute)
        self._clock = clock
        self._store = MemoryStore(_MOST_ADDRESSES)

    def __len__(self) -> int:
        return len(self._store)

    def count(self, address: str | None, error: BitingLipError) -> BitingLipError:
        """Count one failure of an address; return the error to answer with.

        That is ``error``, or RateLimitExceeded in a flood. The home's own socket has no address.
        """
        if self._rate is None or address is None:
            return error
        cell = Cell(network_of(address), self._rate)
        decision = self._store.take_now([cell], self._clock())
        if self._shared is not None and not decision.wait and self._shared.link.away is None:
            asking = asyncio.create_task(self._share(self._shared, cell))
            self._asking.add(asking)
            asking.add_done_callback(self._asking.discard)
        if not decision.wait:
            return error
        text = "Too many wrong credentials come from this address"
        return rate_exceeded(text, [_NAME], decision.wait)

    def headers(self, address: str) -> Headers:
        """Return what is left to an address, as headers of a response."""
        if self._rate is None:
            return ()
        cell = Cell(network_of(address), self._rate)
        return limit_headers(
            _policy(self._rate), self._store.take_now([cell], self._clock(), cost=0).readings
        )

    async def settled(self) -> None:
        """Wait until other gateways know of all failures, or cannot be told."""
        if self._asking:
            await asyncio.wait(list(self._asking))

    async def _share(self, shared: SharedLimits, cell: Cell) -> None:
        """Count a failure for all gateways, and learn what they have counted."""
        with suppress(RedisAway):
            taken = await shared.take("logins:" + cell.id, [RateRequest(cell)])
            self._store.restore({cell.id: self._clock() + taken.states[0]})


@lru_cache(maxsize=1)
def _policy(rate: Rate) -> Policy:
    rates = (Limit(_NAME, _NAME, rate),)
    return Policy(rates=rates, header=policy_header(rates))


def network_of(address: str) -> str:
    """Return what counts as one client: an IPv4 address, or a network of IPv6."""
    if ":" not in address:
        return address
    try:
        whole = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if whole.ipv4_mapped is not None:
        return str(whole.ipv4_mapped)
    return str(ipaddress.IPv6Network((whole, _NETWORK_BITS), strict=False))
