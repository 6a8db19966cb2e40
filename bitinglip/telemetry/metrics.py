"""Declares every metric that the server exports, and the few calls that feed them.

Label values are bounded: routes by template, methods and models by what is known. A label never
holds a key, a prompt or anything else that a client made up. All together stay below 1,000 series
while up to eight models are used; another costs up to 60.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from bitinglip.telemetry.device_gauges import DeviceSample
from bitinglip.telemetry.exposition import MaySee, render
from bitinglip.telemetry.live_gauges import Edge, Live
from bitinglip.telemetry.tally import OTHER, Labels, LiveTally, Spread, Tally

ACTIVE_SECONDS = 300.0  #: a user counts as active for this long after a request
MAX_LABEL_VALUES = 64  #: different models, or reasons, before the rest are called ``_other``
_MOST_ENDS = 240  #: of requests by method, route and status
_MOST_LOSSES = 64  #: of workers by model and reason
_MOST_UNCOUNTED = 256  #: requests, and jobs, that have ended
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_REQUEST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
# Ten bounds each: these are kept for every model.
_QUEUE = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300)
_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_INTER_TOKEN = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.5, 1)
_LOAD = (0.25, 1, 2.5, 5, 10, 20, 40, 80, 160, 640)
_OVERHEAD = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1)

#: a request that has ended: its method, endpoint and status, and how long it took
_Request = tuple[tuple[str, str, int], float]
#: a job: its model, kind and end; the seconds until a worker had it, its first token and its end;
#: tokens read and made
_Job = tuple[tuple[str, str, str], tuple[float, float | None, float], int, int]


class Metrics:
    """Holds a registry of its own, so that two servers in one process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._models = _Bounded()
        self._reasons = _Bounded()
        self._seen: dict[str, float] = {}
        self._requests_ended: list[_Request] = []  #: not counted yet
        self._jobs_ended: list[_Job] = []
        self._overheads: list[float] = []
        #: takes the gateway's own time before an answer begins, in seconds
        self.overhead: Callable[[float], None] = self._overheads.append
        self.registry.register(_First(self._count))
        self._define_requests()
        self._define_inference()
        self._define_workers()

    def _define_requests(self) -> None:
        registry = self.registry
        self._requests = Tally(
            "gateway_requests_total",
            "HTTP requests",
            ["method", "endpoint", "status"],
            registry,
            most=_MOST_ENDS,
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
        self._ignored = Tally(
            "bitinglip_ignored_fields_total",
            "Requests on OpenAI's surface with fields that were ignored",
            [],
            registry,
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
        self._cached_tokens = Tally(
            "bitinglip_cached_prompt_tokens_total",
            "Prompt tokens that an earlier request had computed",
            ["model"],
            registry,
        )
        self._drafts = Tally(
            "bitinglip_draft_tokens_total",
            "Tokens that speculation drafted, by whether the model took them",
            ["model", "outcome"],
            registry,
        )
        self._images = Tally("bitinglip_images_total", "Images made", ["model"], registry)
        self._audio = Tally(
            "bitinglip_audio_seconds_total",
            "Seconds of audio spoken or transcribed",
            ["model"],
            registry,
        )
        self._queue = histogram("bitinglip_queue_seconds", "Wait before a worker began", _QUEUE)
        self._first = histogram(
            "bitinglip_time_to_first_token_seconds",
            "From submission to the first token",
            _FIRST_TOKEN,
        )
        self._between = histogram(
            "bitinglip_inter_token_seconds", "Mean time between a job's tokens", _INTER_TOKEN
        )

    def _define_workers(self) -> None:
        registry = self.registry
        self._loads = Tally(
            "bitinglip_model_loads_total", "Model loads", ["model", "result"], registry
        )
        self._load_seconds = Spread(
            "bitinglip_model_load_seconds",
            "How long loads took that succeeded, by where most of the files came from",
            ["model", "source"],
            registry,
            buckets=_LOAD,
        )
        self._evictions = Tally(
            "bitinglip_evictions_total",
            "Models unloaded to make room, or because they were unused",
            ["model"],
            registry,
        )
        self._restarts = Tally(
            "bitinglip_worker_restarts_total",
            "Workers lost, by reason",
            ["model", "reason"],
            registry,
            most=_MOST_LOSSES,
        )

    # ---- what happened -------------------------------------------------------------------------

    def request_finished(self, *, method: str, endpoint: str, status: int, seconds: float) -> None:
        ended = self._requests_ended
        ended.append(((method, endpoint, status), seconds))
        if len(ended) >= _MOST_UNCOUNTED:
            self._count()

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
        times = queue_seconds, first_token_seconds, duration
        self._jobs_ended.append(((model, kind, status), times, prompt_tokens, completion_tokens))
        if len(self._jobs_ended) >= _MOST_UNCOUNTED:
            self._count()

    def _count(self) -> None:
        """Count what has ended: many at once take a fraction of the time of one by one."""
        requests, self._requests_ended = self._requests_ended, []
        for (method, endpoint, status), count in Counter(each for each, _ in requests).items():
            known = method if method in _METHODS else OTHER
            self._requests.add((known, endpoint, str(status)), count)
        self._duration.observe(*[seconds for _, seconds in requests])
        self._overhead.observe(*self._overheads)
        self._overheads.clear()
        jobs, self._jobs_ended = self._jobs_ended, []
        for (model, kind, end), count in Counter(job[0] for job in jobs).items():
            name = self._models.bound(model)
            self._inference.add((name, kind), count)
            self._jobs.add((name, end), count)
        for model in dict.fromkeys(job[0][0] for job in jobs):
            self._count_jobs(self._models.bound(model), [job for job in jobs if job[0][0] == model])

    def _count_jobs(self, model: str, jobs: Sequence[_Job]) -> None:
        """Count the times and tokens of a model's jobs."""
        labels = (model,)
        self._queue.observe(*[queue for _, (queue, _, _), _, _ in jobs], labels=labels)
        self._tokens.add((model, "prompt"), sum(prompt for _, _, prompt, _ in jobs))
        self._tokens.add((model, "completion"), sum(made for _, _, _, made in jobs))
        first_tokens, between = [], []
        for _, (_, first, duration), _, made in jobs:
            if first is not None:
                first_tokens.append(first)
                if made > 1:
                    between.append((duration - first) / (made - 1))
        if first_tokens:
            self._first.observe(*first_tokens, labels=labels)
        if between:
            self._between.observe(*between, labels=labels)

    def fields_ignored(self) -> None:
        self._ignored.add()

    def tokens_cached(self, *, model: str, count: int) -> None:
        self._cached_tokens.add((self._models.bound(model),), count)

    def tokens_drafted(self, *, model: str, drafted: int, accepted: int) -> None:
        model = self._models.bound(model)
        self._drafts.add((model, "accepted"), accepted)
        self._drafts.add((model, "rejected"), drafted - accepted)

    def images_made(self, *, model: str, count: int) -> None:
        self._images.add((self._models.bound(model),), count)

    def audio_done(self, *, model: str, seconds: float) -> None:
        self._audio.add((self._models.bound(model),), seconds)

    def load_finished(self, *, model: str, seconds: float, source: str | None) -> None:
        """Count a load; ``source``: of its files, storage or cache; None if it failed."""
        model = self._models.bound(model)
        # Both begin at 0: what appears with 1 is no increase to Prometheus.
        self._loads.add((model, "ok"), 1.0 if source else 0.0)
        self._loads.add((model, "failed"), 0.0 if source else 1.0)
        if source:
            self._load_seconds.observe(seconds, labels=(model, source))

    def evicted(self, *, model: str) -> None:
        self._evictions.add((self._models.bound(model),))

    def worker_restarted(self, *, model: str, reason: str) -> None:
        self._restarts.add((self._models.bound(model), self._reasons.bound(reason)))

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
        copies: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """Read these gauges at each scrape: on the event loop, so none may block.

        ``tokens``: of each job that is not counted yet its model, and its prompt's and made tokens.
        ``copies``: bytes of models on each node that has copies.
        """
        self._tokens.live = lambda: self._live_tokens(tokens())
        self.registry.register(Edge(connections, refused, degraded))
        self.registry.register(Live(in_flight, depth, workers, devices, self._models.bound, copies))

    def _live_tokens(self, jobs: Iterable[tuple[str, int, int]]) -> dict[Labels, float]:
        found: dict[Labels, float] = {}
        for name, prompt, made in jobs:
            model = self._models.bound(name)
            for labels, tokens in (((model, "prompt"), prompt), ((model, "completion"), made)):
                found[labels] = found.get(labels, 0.0) + tokens
        return found

    def totals(self) -> dict[str, float]:
        """Return what was counted since the start: requests, jobs by how they ended, tokens."""
        self._count()
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


class _First(Collector):
    """Is read before all other collectors at each scrape."""

    def __init__(self, prepare: Callable[[], None]) -> None:
        self._prepare = prepare

    def collect(self) -> Iterable[Metric]:
        self._prepare()
        return ()


class _Bounded:
    """Passes label values through until there are too many."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def bound(self, value: str) -> str:
        if value not in self._known:
            if len(self._known) >= MAX_LABEL_VALUES:
                return OTHER
            self._known.add(value)
        return value
