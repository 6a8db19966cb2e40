"""Shows the figures of one run or of two side by side, for people and as JSON."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.load import percentile
from benchmarks.simulator.outcome import COMPLETED, Sample
from benchmarks.simulator.run import Run

_TIERS = ("operator", "enterprise", "pro", "free")


def facts(run: Run) -> dict[str, Any]:
    """Return all figures; the same for the same trace and seed, ``real`` apart."""
    served = [sample for sample in run.samples if sample.ended == COMPLETED]
    admitted = [sample for sample in run.samples if not sample.refused]
    return {
        "policy": run.policy,
        "requests": len(run.samples),
        "served": len(served),
        "refused": _causes(sample for sample in run.samples if sample.refused),
        "failed": _causes(sample for sample in admitted if sample.ended != COMPLETED),
        "loads": run.loads,
        "load_seconds": round(run.load_seconds, 1),
        "evictions": run.evictions,
        "over_commits": run.over_commits,
        "left": run.left,
        "waits": {
            tier: _spread([sample.wait for sample in admitted if sample.tier == tier])
            for tier in _TIERS
            if any(sample.tier == tier for sample in admitted)
        },
        "waits_longest": _waits_longest(admitted),
        "devices": {
            name: {"memory": round(use.memory, 3), "busy": round(use.busy, 3)}
            for name, use in run.use.items()
        },
        "seconds": round(run.seconds, 1),
        "real": {
            "seconds": round(run.real_seconds, 2),
            "simulated_per_real": round(run.seconds / run.real_seconds, 1),
        },
    }


def table(runs: Sequence[Run]) -> str:
    """Write an aligned table, with a column for each run."""
    columns = [_column(facts(run)) for run in runs]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[name, *(column.get(name, "-") for column in columns)] for name in names]
    widths = [max(len(row[place]) for row in rows) for place in range(len(columns) + 1)]
    lines = (
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    )
    return "\n".join(lines)


def _column(found: dict[str, Any]) -> dict[str, str]:
    rows = {
        "policy": found["policy"],
        "requests": str(found["requests"]),
        "served": str(found["served"]),
        "refused": _counts(found["refused"]),
        "failed": _counts(found["failed"]),
        "loads": str(found["loads"]),
        "time lost to loading, s": str(found["load_seconds"]),
        "evictions": str(found["evictions"]),
        "over-commits": str(found["over_commits"]),
    }
    for tier, waits in found["waits"].items():
        words = " / ".join(f"{waits[each]:.2f}" for each in ("p50", "p95", "max"))
        rows[f"wait of {tier}, s: p50 / p95 / max"] = words
    if worst := found["waits_longest"]:
        rows["model that waits longest, s: p50 / max"] = (
            f"{worst['model']} {worst['p50']:.2f} / {worst['max']:.2f}"
        )
    for name, use in found["devices"].items():
        rows[f"{name}: memory, busy"] = f"{use['memory']:.0%}, {use['busy']:.0%}"
    rows["simulated seconds"] = str(found["seconds"])
    rows["simulated per real second"] = str(found["real"]["simulated_per_real"])
    return rows


def _causes(samples: Iterable[Sample]) -> dict[str, int]:
    return dict(sorted(Counter(sample.ended for sample in samples).items()))


def _waits_longest(samples: Sequence[Sample]) -> dict[str, Any] | None:
    """Return the model with the longest wait of all: figures by tier alone would hide that it
    starves."""
    if not samples:
        return None
    model = max(samples, key=lambda sample: sample.wait).model
    waits = _spread([sample.wait for sample in samples if sample.model == model])
    return {"model": model, "p50": waits["p50"], "max": waits["max"]}


def _counts(causes: dict[str, int]) -> str:
    return ", ".join(f"{count} {code}" for code, count in causes.items()) or "0"


def _spread(waits: list[float]) -> dict[str, float]:
    found = {f"p{percent}": round(percentile(waits, percent), 3) for percent in (50, 95)}
    return found | {"max": round(max(waits), 3)}
