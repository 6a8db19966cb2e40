"""Shows what gateways share through Redis, at each scrape; only where there is one."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector


class RedisReading(NamedTuple):
    """Holds the present state of Redis, and counts since the start."""

    up: bool = True
    lost: int = 0  #: how often it did not answer any more
    writes: int = 0
    seconds: float = 0.0  #: that these took, until their answers were there
    places: int = 0  #: that this gateway holds
    reservations: int = 0
    heard: int = 0  #: messages of other gateways
    gaps: int = 0  #: how often messages may have been missed


def watch_redis(registry: CollectorRegistry, read: Callable[[], RedisReading]) -> None:
    """Have the metrics read at each scrape."""
    registry.register(_Redis(read))


class _Redis(Collector):
    def __init__(self, read: Callable[[], RedisReading]) -> None:
        self._read = read

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        now = self._read()
        yield GaugeMetricFamily("bitinglip_redis_up", "Whether Redis answers", value=now.up)
        yield CounterMetricFamily(
            "bitinglip_redis_lost", "How often Redis did not answer any more", value=now.lost
        )
        yield CounterMetricFamily(
            "bitinglip_redis_writes", "Writes to Redis, of one or more calls each", value=now.writes
        )
        yield CounterMetricFamily(
            "bitinglip_redis_seconds", "Seconds until the answers to these", value=now.seconds
        )
        held = GaugeMetricFamily(
            "bitinglip_redis_held",
            "Places and reservations of shared limits that this gateway holds",
            labels=["kind"],
        )
        held.add_metric(["places"], now.places)
        held.add_metric(["reservations"], now.reservations)
        yield held
        yield CounterMetricFamily(
            "bitinglip_broadcast_heard", "Messages of other gateways", value=now.heard
        )
        yield CounterMetricFamily(
            "bitinglip_broadcast_gaps",
            "How often messages of other gateways may have been missed, and all was read again",
            value=now.gaps,
        )
