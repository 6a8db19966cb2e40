"""Lists the metrics from the parts that declare them."""

from collections.abc import Iterator
from typing import NamedTuple

from bitinglip.guard.watch import Watch
from bitinglip.settings import Settings
from bitinglip.telemetry.cache_metrics import CacheMetrics
from bitinglip.telemetry.download_metrics import DownloadMetrics
from bitinglip.telemetry.health import Health
from bitinglip.telemetry.metrics import Metrics
from bitinglip.telemetry.redis_gauges import RedisReading, watch_redis
from bitinglip.telemetry.refusals import LimitRefusals
from bitinglip.telemetry.span_counts import SpanCounts
from scripts.reference.page import table

HEAD = """\
# Metrics

`GET /metrics` shows them in the format of Prometheus: to this machine without a key, to others
with the scope `cluster:read`. Labels are bounded: routes by template, models by what is
installed, so that all together stay below 1,000 series while up to eight models are used.
`deploy/grafana/bitinglip.json` is a dashboard of them, `deploy/prometheus/alerts.yml` has alerts.

"""


class Described(NamedTuple):
    """Describes a metric as scrapers see it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


def every_metric() -> list[Described]:
    """List the metrics of a server, by name."""
    metrics = Metrics()
    metrics.watch(in_flight=lambda: 0, depth=dict, workers=dict)
    Watch(metrics.registry, Health(), Settings().guard)
    LimitRefusals(metrics.registry)
    SpanCounts(metrics.registry)
    CacheMetrics(metrics.registry).watch(lambda: (0, 0, 0))
    DownloadMetrics(metrics.registry).watch(dict)
    watch_redis(metrics.registry, RedisReading)
    return sorted(_described(metrics))


def _described(metrics: Metrics) -> Iterator[Described]:
    for family in metrics.registry.collect():
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        labels = tuple(getattr(family, "_labelnames", ()))
        yield Described(f"{family.name}{suffix}", family.type, labels, family.documentation)


def page() -> str:
    rows = [
        (f"`{each.name}`", each.kind, ", ".join(each.labels), each.text) for each in every_metric()
    ]
    return HEAD + table(("metric", "type", "labels", "what it tells"), rows)
