"""Counters and histograms for what happens at every request, shown to scrapers at each scrape.

The library's own take a lock for each step, cost ten times as much and show the moment at which
each series was made as one more series; here one thread counts, the one of the event loop, and
renders too. A ``Tally`` holds a bounded number of series: what comes beyond it is counted as
``_other``; the labels of a ``Spread`` have to be bounded by its caller.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

Labels = tuple[str, ...]
OTHER = "_other"
MOST_SETS = 256  #: values of labels, together, in one family


class Tally(Collector):
    """Counts by the values of labels."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        registry: CollectorRegistry,
        *,
        most: int = MOST_SETS,
    ) -> None:
        """``most``: values of the labels that are told apart; of others only the last of several
        labels is kept, which has to be bounded by itself."""
        self._name, self._text, self._labels = name, text, labels
        self._most = most
        self._counts: dict[Labels, float] = {} if labels else {(): 0.0}
        registry.register(self)

    def add(self, labels: Labels = (), amount: float = 1.0) -> None:
        counts = self._counts
        if labels not in counts:
            if len(counts) >= self._most:
                labels = (*(OTHER for _ in labels[1:]), labels[-1] if labels[1:] else OTHER)
            counts.setdefault(labels, 0.0)
        counts[labels] += amount

    def counts(self) -> Mapping[Labels, float]:
        """Return the counts by the values of their labels."""
        return self._counts

    def sums(self, place: int) -> dict[str, float]:
        """Add up the counts by the value of one label, which is named by its place."""
        found: dict[str, float] = {}
        for labels, count in self.counts().items():
            found[labels[place]] = found.get(labels[place], 0.0) + count
        return found

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, count in self.counts().items():
            family.add_metric(labels, count)
        yield family


class LiveTally(Tally):
    """Counts also what is still going on; it never falls, whatever becomes of it."""

    #: returns what has not been added yet
    live: Callable[[], Mapping[Labels, float]] = staticmethod(dict)

    def __init__(
        self, name: str, text: str, labels: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self._shown: dict[Labels, float] = {}
        super().__init__(name, text, labels, registry)

    def counts(self) -> Mapping[Labels, float]:
        live = self.live()
        for labels in self._counts.keys() | live.keys():
            now = self._counts.get(labels, 0.0) + live.get(labels, 0.0)
            self._shown[labels] = max(now, self._shown.get(labels, 0.0))
        return self._shown


@dataclass(slots=True)
class _Observed:
    counts: list[int]  #: of each bucket alone, the last without a bound
    sum: float = 0.0


class Spread(Collector):
    """Keeps a histogram by the values of its labels."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        registry: CollectorRegistry,
        *,
        buckets: Sequence[float],
    ) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._bounds = list(buckets)
        self._observed: dict[Labels, _Observed] = {}
        if not labels:
            self._new(())
        registry.register(self)

    def observe(self, *values: float, labels: Labels = ()) -> None:
        observed = self._observed.get(labels) or self._new(labels)
        for bucket, count in Counter(map(partial(bisect_left, self._bounds), values)).items():
            observed.counts[bucket] += count
        observed.sum += sum(values)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        for labels, observed in self._observed.items():
            total, buckets = 0, []
            for name, count in zip(names, observed.counts, strict=True):
                total += count
                buckets.append((name, float(total)))
            family.add_metric(labels, buckets, observed.sum)
        yield family

    def _new(self, labels: Labels) -> _Observed:
        made = self._observed[labels] = _Observed([0] * (len(self._bounds) + 1))
        return made
