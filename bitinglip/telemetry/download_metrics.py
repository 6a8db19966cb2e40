"""Exports the metrics of downloads."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from bitinglip.telemetry.tally import Tally

States = Callable[[], Mapping[str, int]]  #: how many downloads wait and run


class DownloadMetrics:
    """Counts what came, and how downloads ended."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._ended = Tally(
            "bitinglip_downloads_ended_total",
            "Downloads of models by how they ended",
            ["state"],
            registry,
        )
        self._bytes = Tally(
            "bitinglip_download_bytes_total", "Bytes of models downloaded", [], registry
        )

    def received(self, count: int) -> None:
        self._bytes.add((), count)

    def ended(self, state: str) -> None:
        self._ended.add((state,))

    def watch(self, states: States) -> None:
        """Read how many downloads wait and run at each scrape."""
        self._registry.register(_Open(states))


class _Open(Collector):
    def __init__(self, states: States) -> None:
        self._states = states

    def collect(self) -> Iterator[GaugeMetricFamily]:
        found = GaugeMetricFamily(
            "bitinglip_downloads", "Downloads of models that have not ended", labels=["state"]
        )
        for state, count in self._states().items():
            found.add_metric([state], count)
        yield found
