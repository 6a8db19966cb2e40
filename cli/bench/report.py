"""Computes what a run of requests came to. Pure."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from cli.bench.measure import Sample


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the nearest rank; None of nothing."""
    if not values:
        return None
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(len(ranked) * percent / 100))]


def row(concurrency: int, samples: Sequence[Sample]) -> dict[str, Any]:
    """Return a run's figures; times are in milliseconds, those of tokens are of text only."""
    good = [each for each in samples if each.error is None]
    seconds = max(each.ended for each in samples) - min(each.began for each in samples)
    first = [1000 * (each.tokens[0] - each.began) for each in good if each.tokens]
    gaps = [1000 * (b - a) for each in good for a, b in pairwise(each.tokens)]
    whole = [1000 * (each.ended - each.began) for each in good]
    return {
        "concurrency": concurrency,
        "requests": len(samples),
        "errors": dict(Counter(each.error for each in samples if each.error)),
        "seconds": round(seconds, 3),
        "requests_per_second": round(len(good) / seconds, 3),
        "tokens_per_second": round(sum(each.completion_tokens for each in good) / seconds, 2),
        "first_token_ms": _spread(first),
        "inter_token_ms": _spread(gaps),
        "latency_ms": _spread(whole),
    }


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    found = {f"p{percent}": percentile(values, percent) for percent in (50, 95, 99)}
    return {name: None if value is None else round(value, 2) for name, value in found.items()}


def remark(rows: Sequence[dict[str, Any]], share: float | None) -> str | None:
    """Say what limits the model most likely, by its figures; None if nothing stands out.

    ``share``: of the machine's ceiling, that one request at a time reached.
    """
    if any(each["errors"] for each in rows):
        return "Some requests failed; their rows count the others only."
    for before, after in pairwise(rows):
        more = after["concurrency"] / before["concurrency"]
        gained = after["requests_per_second"] / (before["requests_per_second"] or 1)
        if more > 1 and gained < 1 + 0.15 * (more - 1):
            return (
                f"More than {before['concurrency']} at once gain little: the device is busy, or "
                "requests wait for a place (see `bitinglip top`)."
            )
    if share is not None and share < 0.3:
        return (
            "One request at a time is far from the ceiling: the work around each step, and not "
            "memory, takes the time. Several at once use the machine better."
        )
    return None
