"""Declares every metric that the server exports, and the few calls that feed them.

Label values are bounded: routes by template, methods and models by what is known. A label never
holds a key, a prompt or anything else that a client made up.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from bitinglip import __version__
from bitinglip.telemetry.device_gauges import DeviceSample, device_gauges
from bitinglip.telemetry.exposition import MaySee, render
from bitinglip.telemetry.health import CHECKS
from bitinglip.telemetry.logs import dropped_lines
from bitinglip.telemetry.tally import Labels, LiveTally, Spread, Tally

ACTIVE_SECONDS = 300.0  #: a user counts as active for this long after a request
MAX_LABEL_VALUES = 256  #: different models, or reasons, before the rest are called ``_other``
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_REQUEST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_FIRST_TOKEN = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
)
_INTER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1)
_LOAD = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
_OVERHEAD = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1)


class Metrics:
    """Holds a registry of its own, so that two servers in one process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._models = _Bounded()
        self._reasons = _Bounded()
        self._seen: dict[str, float] = {}
        self._define_requests()
        self._define_inference()
        self._define_workers()

    def _define_requests(self) -> None:
        registry = self.registry
        self._requests = Tally(
            "gateway_requests_total", "HTTP requests", ["method", "endpoint", "status"], registry
        )
        self._duration = Spread(
            "gateway_request_duration_seconds",
            "From a request's arrival to the end of its answer",
            [],
            registry,
            buckets=_REQUEST,
        )
        self._overhead = Spread(
            "bitinglip_overhead_seconds",
            "The gateway's own time before an answer begins",
            [],
            registry,
            buckets=_OVERHEAD,
        )
        self._ignored = Counter(
            "bitinglip_ignored_fields_total",
            "Requests on OpenAI's surface with fields that were ignored",
            registry=registry,
        )
        active = Gauge(
            "gateway_active_users", "API keys used in the last five minutes", registry=registry
        )
        active.set_function(self._active_users)
        self._lag = Gauge(
            "bitinglip_event_loop_lag_seconds", "How late the event loop is", registry=registry
        )

    def _define_inference(self) -> None:
        registry = self.registry

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Spread:
            return Spread(name, text, ["model"], registry, buckets=buckets)

        self._inference = Tally(
            "inference_requests_total",
            "Inference requests that ended",
            ["model", "type"],
            registry,
        )
        self._jobs = Tally(
            "bitinglip_jobs_total", "Jobs by how they ended", ["model", "status"], registry
        )
        self._tokens = LiveTally(
            "bitinglip_tokens_total", "Tokens read and made", ["model", "kind"], registry
        )
        self._cached_tokens = Counter(
            "bitinglip_cached_prompt_tokens_total",
            "Prompt tokens that an earlier request had computed",
            ["model"],
            registry=self.registry,
        )
        self._drafts = Counter(
            "bitinglip_draft_tokens_total",
            "Tokens that speculation drafted, by whether the model took them",
            ["model", "outcome"],
            registry=self.registry,
        )
        self._images = Counter(
            "bitinglip_images_total", "Images made", ["model"], registry=self.registry
        )
        self._audio = Counter(
            "bitinglip_audio_seconds_total",
            "Seconds of audio spoken or transcribed",
            ["model"],
            registry=self.registry,
        )
        self._queue = histogram("bitinglip_queue_seconds", "Wait before a worker began", _REQUEST)
        self._first = histogram(
            "bitinglip_time_to_first_token_seconds",
            "From submission to the first token",
            _FIRST_TOKEN,
        )
        self._between = histogram(
            "bitinglip_inter_token_seconds", "Mean time between a job's tokens", _INTER_TOKEN
        )

    def _define_workers(self) -> None:
        self._loads = Counter(
            "bitinglip_model_loads_total",
            "Model loads",
            ["model", "result"],
            registry=self.registry,
        )
        self._load_seconds = Histogram(
            "bitinglip_model_load_seconds",
            "How long loads took that succeeded, by where most of the files came from",
            ["model", "source"],
            buckets=_LOAD,
            registry=self.registry,
        )
        self._evictions = Counter(
            "bitinglip_evictions_total",
            "Models unloaded to make room, or because they were unused",
            ["model"],
            registry=self.registry,
        )
        self._restarts = Counter(
            "bitinglip_worker_restarts_total",
            "Workers lost, by reason",
            ["model", "reason"],
            registry=self.registry,
        )

    # ---- what happened -------------------------------------------------------------------------

    def request_finished(self, *, method: str, endpoint: str, status: int, seconds: float) -> None:
        known = method if method in _METHODS else "_other"
        self._requests.add((known, endpoint, str(status)))
        self._duration.observe(seconds)

    def overhead(self, seconds: float) -> None:
        self._overhead.observe(seconds)

    def user_seen(self, key_id: str) -> None:
        self._seen[key_id] = time.monotonic()

    def job_finished(
        self,
        *,
        model: str,
        kind: str,
        status: str,
        queue_seconds: float,
        first_token_seconds: float | None,
        duration: float,
        prompt_tokens: int,
        completion_tokens: int,
    ) -> None:
        """Count a job's end; ``duration`` and ``first_token_seconds`` count from its submission."""
        model = self._models.bound(model)
        self._inference.add((model, kind))
        self._jobs.add((model, status))
        self._queue.observe(queue_seconds, (model,))
        self._tokens.add((model, "prompt"), prompt_tokens)
        self._tokens.add((model, "completion"), completion_tokens)
        if first_token_seconds is None:
            return
        self._first.observe(first_token_seconds, (model,))
        if completion_tokens > 1:
            each = (duration - first_token_seconds) / (completion_tokens - 1)
            self._between.observe(each, (model,))

    def fields_ignored(self) -> None:
        self._ignored.inc()

    def tokens_cached(self, *, model: str, count: int) -> None:
        self._cached_tokens.labels(self._models.bound(model)).inc(count)

    def tokens_drafted(self, *, model: str, drafted: int, accepted: int) -> None:
        model = self._models.bound(model)
        self._drafts.labels(model, "accepted").inc(accepted)
        self._drafts.labels(model, "rejected").inc(drafted - accepted)

    def images_made(self, *, model: str, count: int) -> None:
        self._images.labels(self._models.bound(model)).inc(count)

    def audio_done(self, *, model: str, seconds: float) -> None:
        self._audio.labels(self._models.bound(model)).inc(seconds)

    def load_finished(self, *, model: str, seconds: float, source: str | None) -> None:
        """Count a load; ``source``: of its files, storage or cache; None if it failed."""
        model = self._models.bound(model)
        self._loads.labels(model, "ok" if source else "failed").inc()
        if source:
            self._load_seconds.labels(model, source).observe(seconds)

    def evicted(self, *, model: str) -> None:
        self._evictions.labels(self._models.bound(model)).inc()

    def worker_restarted(self, *, model: str, reason: str) -> None:
        self._restarts.labels(self._models.bound(model), self._reasons.bound(reason)).inc()

    def set_loop_lag(self, seconds: float) -> None:
        self._lag.set(seconds)

    # ---- what is asked at each scrape ----------------------------------------------------------

    def watch(
        self,
        in_flight: Callable[[], int],
        depth: Callable[[], Mapping[str, int]],
        workers: Callable[[], Mapping[str, int]],
        devices: Callable[[], Iterable[DeviceSample]] = tuple,
        degraded: Callable[[], Iterable[str]] = tuple,
        connections: Callable[[], Mapping[str, int]] = dict,
        refused: Callable[[], Mapping[str, int]] = dict,
        tokens: Callable[[], Iterable[tuple[str, int, int]]] = tuple,
    ) -> None:
        """Read these gauges at each scrape: on the event loop, so none may block.

        ``tokens``: of each job that is not counted yet its model, and its prompt's and made tokens.
        """
        self._tokens.live = lambda: self._live_tokens(tokens())
        self.registry.register(_Edge(connections, refused, degraded))
        self.registry.register(_Live(in_flight, depth, workers, devices, self._models))

    def _live_tokens(self, jobs: Iterable[tuple[str, int, int]]) -> dict[Labels, float]:
        found: dict[Labels, float] = {}
        for name, prompt, made in jobs:
            model = self._models.bound(name)
            for labels, tokens in (((model, "prompt"), prompt), ((model, "completion"), made)):
                found[labels] = found.get(labels, 0.0) + tokens
        return found

    def totals(self) -> dict[str, float]:
        """Return what was counted since the start: requests, jobs by how they ended, tokens."""
        jobs, tokens = self._jobs.sums(1), self._tokens.sums(1)
        return {
            "requests": sum(self._requests.counts().values()),
            **{f"jobs_{end}": jobs.get(end, 0) for end in ("done", "failed", "cancelled")},
            **{f"{kind}_tokens": tokens.get(kind, 0) for kind in ("prompt", "completion")},
        }

    def render(self, accept: str, may_see: MaySee | None = None) -> tuple[bytes, str]:
        """Return the text in the format that ``accept`` asks for, and its content type."""
        return render(self.registry, accept, may_see)

    def _active_users(self) -> float:
        oldest = time.monotonic() - ACTIVE_SECONDS
        self._seen = {key: seen for key, seen in self._seen.items() if seen > oldest}
        return len(self._seen)


class _Bounded:
    """Passes label values through until there are too many."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def bound(self, value: str) -> str:
        if value not in self._known:
            if len(self._known) >= MAX_LABEL_VALUES:
                return "_other"
            self._known.add(value)
        return value


class _Live(Collector):
    """Gauges that are read, never written."""

    def __init__(
        self,
        in_flight: Callable[[], int],
        depth: Callable[[], Mapping[str, int]],
        workers: Callable[[], Mapping[str, int]],
        devices: Callable[[], Iterable[DeviceSample]],
        models: _Bounded,
    ) -> None:
        self._in_flight = in_flight
        self._depth = depth
        self._workers = workers
        self._devices = devices
        self._models = models

    def collect(self) -> Iterator[GaugeMetricFamily | InfoMetricFamily]:
        yield InfoMetricFamily("bitinglip", "The server", value={"version": __version__})
        yield GaugeMetricFamily(
            "bitinglip_in_flight_requests", "Jobs that run or wait", value=self._in_flight()
        )
        depths = GaugeMetricFamily("bitinglip_queue_depth", "Jobs that wait", labels=["model"])
        for model, waiting in self._depth().items():
            depths.add_metric([self._models.bound(model)], waiting)
        yield depths
        states = GaugeMetricFamily("bitinglip_workers", "Workers by state", labels=["state"])
        for state, count in self._workers().items():
            states.add_metric([state], count)
        yield states
        yield from device_gauges(self._devices())


class _Edge(Collector):
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
