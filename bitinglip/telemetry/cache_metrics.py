"""Counts hits, misses and sizes of the response cache."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from bitinglip.telemetry.tally import Tally

Held = Callable[[], tuple[int, int, int]]  #: bytes, answers, and those evicted so far


class CacheMetrics:
    """Counts requests by what the cache did for them; those that pass it by are not counted."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._hits = Tally(
            "bitinglip_cache_hits_total", "Requests answered from the cache", [], registry
        )
        self._misses = Tally(
            "bitinglip_cache_misses_total",
            "Requests that could have been answered from the cache, and ran a job",
            [],
            registry,
        )

    def asked(self, *, hit: bool) -> None:
        (self._hits if hit else self._misses).add()

    def watch(self, held: Held) -> None:
        """Read what the cache holds at each scrape."""
        self._registry.register(_Held(held))


class _Held(Collector):
    def __init__(self, held: Held) -> None:
        self._held = held

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        size, answers, evicted = self._held()
        yield GaugeMetricFamily("bitinglip_cache_bytes", "Bytes of cached answers", value=size)
        yield GaugeMetricFamily("bitinglip_cache_entries", "Cached answers", value=answers)
        yield CounterMetricFamily(
            "bitinglip_cache_evictions", "Answers dropped to make room", value=evicted
        )
