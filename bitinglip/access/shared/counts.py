"""Joins what gateways share of limits and quotas."""

from typing import TYPE_CHECKING, NamedTuple, Self

from bitinglip.access.limits.token_rates import TokenRates
from bitinglip.access.shared.limits import SharedLimits
from bitinglip.access.shared.quotas import SharedQuotas
from bitinglip.access.usage.meter import Meter
from bitinglip.access.usage.rows import UsageRows
from bitinglip.db.write_behind import WriteBehind
from bitinglip.redis.broadcast import Broadcast
from bitinglip.telemetry.redis_gauges import RedisReading

if TYPE_CHECKING:
    from bitinglip.redis.link import RedisLink


class SharedCounts(NamedTuple):
    """Holds the limits and the quotas of all gateways that have the same Redis."""

    limits: SharedLimits
    quotas: SharedQuotas

    @classmethod
    def over(
        cls,
        link: "RedisLink",
        meter: Meter,
        rates: TokenRates,
        usage: UsageRows,
        write_behind: WriteBehind,
    ) -> Self:
        """Build the shared counts, and have a meter and its rates use them."""
        limits = SharedLimits(link)
        quotas = SharedQuotas(limits, meter, rates, usage.sums_of, write_behind.flush)
        rates.shared, meter.shared = limits, quotas
        return cls(limits, quotas)

    def reading(self, broadcast: Broadcast) -> RedisReading:
        """Return the state of Redis, as the metrics export it."""
        link = self.limits.link
        held, counted = self.limits.held, (broadcast.heard, broadcast.gaps)
        return RedisReading(link.away is None, link.faults, *link.writes, *held, *counted)

    @property
    def renew_seconds(self) -> float:
        """Return the seconds between two renewals: two may fail before a lease ends."""
        return self.limits.link.settings.lease / 3
