"""Shows what is read at each scrape: jobs, workers, devices, connections, what is degraded."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from bitinglip import __version__
from bitinglip.telemetry.device_gauges import DeviceSample, device_gauges
from bitinglip.telemetry.health import CHECKS
from bitinglip.telemetry.logs import dropped_lines


class Live(Collector):
    """Gauges that are read, never written."""

    def __init__(
        self,
        in_flight: Callable[[], int],
        depth: Callable[[], Mapping[str, int]],
        workers: Callable[[], Mapping[str, int]],
        devices: Callable[[], Iterable[DeviceSample]],
        bound: Callable[[str], str],
        copies: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self._copies = copies
        self._in_flight = in_flight
        self._depth = depth
        self._workers = workers
        self._devices = devices
        self._bound = bound

    def collect(self) -> Iterator[GaugeMetricFamily | InfoMetricFamily]:
        yield InfoMetricFamily("bitinglip", "The server", value={"version": __version__})
        yield GaugeMetricFamily(
            "bitinglip_in_flight_requests", "Jobs that run or wait", value=self._in_flight()
        )
        depths = GaugeMetricFamily("bitinglip_queue_depth", "Jobs that wait", labels=["model"])
        for model, waiting in _folded(self._depth(), self._bound).items():
            depths.add_metric([model], waiting)
        yield depths
        states = GaugeMetricFamily("bitinglip_workers", "Workers by state", labels=["state"])
        for state, count in self._workers().items():
            states.add_metric([state], count)
        yield states
        yield from device_gauges(self._devices())
        copies = GaugeMetricFamily(
            "bitinglip_node_model_bytes", "Bytes of models copied to a node", labels=["node"]
        )
        for node, size in self._copies().items():
            copies.add_metric([node], size)
        yield copies


class Edge(Collector):
    """Count what the server takes in and turns away, and show what it does without."""

    def __init__(
        self,
        connections: Callable[[], Mapping[str, int]],
        refused: Callable[[], Mapping[str, int]],
        degraded: Callable[[], Iterable[str]],
    ) -> None:
        self._connections = connections
        self._refused = refused
        self._degraded = degraded

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        connections = GaugeMetricFamily(
            "bitinglip_connections", "Open connections", labels=["state"]
        )
        for state, count in self._connections().items():
            connections.add_metric([state], count)
        yield connections
        refused = CounterMetricFamily(
            "bitinglip_connections_refused", "Connections closed on purpose", labels=["reason"]
        )
        for reason, count in self._refused().items():
            refused.add_metric([reason], count)
        yield refused
        degraded = GaugeMetricFamily(
            "bitinglip_degraded", "1 for each part of /health that is degraded", labels=["check"]
        )
        problems = set(self._degraded())
        for check in CHECKS:
            degraded.add_metric([check], check in problems)
        yield degraded
        yield CounterMetricFamily(
            "bitinglip_log_lines_dropped",
            "Log lines that could not be written",
            value=dropped_lines(),
        )


def _folded(counts: Mapping[str, int], bound: Callable[[str], str]) -> dict[str, int]:
    """Add up the counts of names that have no series of their own."""
    found: dict[str, int] = {}
    for name, count in counts.items():
        label = bound(name)
        found[label] = found.get(label, 0) + count
    return found
