"""Counts what becomes of spans: a collector that is down shows here."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector


class SpanCounts(Collector):
    """Counts spans. Each number is written by one thread only; scrapers read them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.ended = 0  #: by the event loop
        self.overflowed = 0  #: by the event loop: the queue was full
        self.taken = 0  #: by the exporter's thread
        self.exported = 0  #: by the exporter's thread
        self.refused = 0  #: by the exporter's thread: the collector did not take them
        registry.register(self)

    @property
    def waiting(self) -> int:
        """Return how many wait for the exporter."""
        return self.ended - self.taken

    @property
    def dropped(self) -> int:
        return self.overflowed + self.refused

    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily(
            "bitinglip_spans_exported", "Spans that the collector took", value=self.exported
        )
        yield CounterMetricFamily(
            "bitinglip_spans_dropped",
            "Spans that were lost, as the collector is slow or does not answer",
            value=self.dropped,
        )
