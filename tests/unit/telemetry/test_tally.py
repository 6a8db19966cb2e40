"""Our counters and histograms say what the library's say."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import choose_encoder

from bitinglip.telemetry.tally import Spread, Tally

BOUNDS = (0.001, 0.01, 0.5, 1, 10)
#: labels that need escaping, and values at, below and above each bound
MODELS = st.sampled_from(["a", "org/b", 'q"uo\\te', "line\nbreak"])
VALUES = st.sampled_from(BOUNDS) | st.floats(0, 20)


def _lines(registry: CollectorRegistry) -> list[list[str]]:
    """Return what scrapers get in both formats, without the times at which series were made."""
    accepted = ("", "application/openmetrics-text; version=1.0.0")
    texts = [choose_encoder(each)[0](registry) for each in accepted]
    return [
        [each for each in text.decode().splitlines() if "_created" not in each] for text in texts
    ]


@given(st.lists(st.tuples(MODELS, VALUES), max_size=30))
def test_tally_and_spread_show_what_the_library_s_own_show(seen: list[tuple[str, float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally = Tally("jobs_total", "Jobs", ["model", "end"], ours)
    spread = Spread("wait_seconds", "Wait", ["model"], ours, buckets=BOUNDS)
    plain = Spread("all_seconds", "All", [], ours, buckets=BOUNDS)
    counter = Counter("jobs_total", "Jobs", ["model", "end"], registry=theirs)
    histogram = Histogram("wait_seconds", "Wait", ["model"], registry=theirs, buckets=BOUNDS)
    unlabelled = Histogram("all_seconds", "All", registry=theirs, buckets=BOUNDS)
    for model, value in seen:
        tally.add((model, "done"))
        tally.add((model, "failed"), value)
        spread.observe(value, labels=(model,))
        plain.observe(value)
        counter.labels(model, "done").inc()
        counter.labels(model, "failed").inc(value)
        histogram.labels(model).observe(value)
        unlabelled.observe(value)
    assert _lines(ours) == _lines(theirs)
