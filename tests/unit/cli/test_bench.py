"""Figures of a load test, and their report."""

import pytest

from cli.bench.measure import Load, Sample
from cli.bench.report import percentile, remark, row


def sample(began: float, *tokens: float, error: str | None = None) -> Sample:
    return Sample(began, tokens[-1] if tokens else began + 1, list(tokens), len(tokens), error)


def test_percentile_is_the_nearest_rank_and_none_of_nothing() -> None:
    assert [percentile(range(1, 101), each) for each in (50, 95, 99)] == [51, 96, 100]
    assert percentile([], 50) is None


def test_figures_of_a_run_count_what_was_answered() -> None:
    found = row(2, [sample(0.0, 0.5, 1.0), sample(0.0, 1.0, 2.0), sample(1.0, error="full")])
    assert (found["requests"], found["errors"]) == (3, {"full": 1})
    assert (found["requests_per_second"], found["tokens_per_second"]) == (1.0, 2.0)
    assert found["first_token_ms"]["p50"] == 1000
    assert found["inter_token_ms"] == {"p50": 1000, "p95": 1000, "p99": 1000}
    assert found["latency_ms"]["p95"] == 2000


def figures(concurrency: int, speed: float, **more: object) -> dict[str, object]:
    return {
        "concurrency": concurrency,
        "requests_per_second": speed,
        "errors": {},
        **more,
    }


@pytest.mark.parametrize(
    ("rows", "share", "said"),
    [
        ([figures(1, 5), figures(4, 19)], 0.8, None),
        ([figures(1, 5), figures(4, 19)], 0.1, "far from the ceiling"),
        ([figures(1, 5), figures(4, 6)], 0.1, "More than 1 at once gain little"),
        ([figures(1, 5, errors={"x": 1})], None, "Some requests failed"),
    ],
)
def test_remark_names_what_limits_the_model(
    rows: list[dict[str, object]], share: float | None, said: str | None
) -> None:
    found = remark(rows, share)
    assert found is None if said is None else said in (found or "")


@pytest.mark.parametrize("kind", ["text", "image", "speech", "embedding"])
def test_request_of_a_load_test_begins_as_no_other(kind: str) -> None:
    load = Load("m", kind, prompt_words=20, max_tokens=5)
    field = {"speech": "text", "embedding": "input"}.get(kind, "prompt")
    texts = [load.body()[field] for _ in range(20)]
    assert len({text.split()[0] for text in texts}) == 20
    assert all(len(text.split()) == 21 for text in texts)
