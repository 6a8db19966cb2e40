"""Shows what the server is doing: its queues by tier, its last minute, its last errors."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from bitinglip.scheduling.event_log import EventLog
from bitinglip.settings import Tiers
from bitinglip.wire.errors import timestamp
from workers import protocol

MINUTE = 60.0  #: seconds that the figures of the last minute look back
MOST_ERRORS = 12  #: that are shown
_INDEX = {"p50": 0.5, "p95": 0.95}


def queues_by_tier(event_logs: Iterable[EventLog], tiers: Tiers) -> list[dict[str, Any]]:
    """Count the jobs that wait and run, by tier, the highest first.

    Tiers of one priority are told apart by nothing that a job knows: the first of them counts.
    """
    names: dict[int, str] = {}
    for name, tier in tiers:
        names.setdefault(tier.priority, name)
    counts = {rank: {"waiting": 0, "running": 0} for rank in names}
    for event_log in event_logs:
        if event_log.final is not None:
            continue
        of_rank = counts.setdefault(event_log.job.priority.rank, {"waiting": 0, "running": 0})
        of_rank["waiting" if event_log.dispatched is None else "running"] += 1
    ranks = sorted(counts, reverse=True)
    return [{"tier": names.get(rank, str(rank)), **counts[rank]} for rank in ranks]


def last_minute(event_logs: Iterable[EventLog], now: float) -> dict[str, Any]:
    """Sum up the jobs that ended in the last minute: how many, how they ended, and their waits."""
    ended = [each for each in event_logs if each.ended is not None and each.ended > now - MINUTE]
    failed = sum(isinstance(each.final, protocol.Failed) for each in ended)
    cancelled = sum(isinstance(each.final, protocol.Cancelled) for each in ended)
    first = [each.first_token - each.submitted for each in ended if each.first_token]
    return {
        "jobs": len(ended),
        "failed": failed,
        "cancelled": cancelled,
        "first_token": _percentiles(first),
        "queue": _percentiles([each.queue_time for each in ended]),
    }


def last_errors(
    event_logs: Iterable[EventLog], may_use: Callable[[str], bool], *, messages: bool
) -> list[dict[str, Any]]:
    """Describe the last jobs that failed, the newest first; their ``messages`` are for admins."""
    failed = (
        (event_log, event_log.final)
        for event_log in event_logs
        if isinstance(event_log.final, protocol.Failed) and may_use(event_log.job.model)
    )
    return [
        {
            "task_id": event_log.job.id,
            "model": event_log.job.model,
            "kind": event_log.job.kind,
            "worker": event_log.worker_id,
            "code": final.code,
            "message": final.message if messages else None,
            "at": timestamp(event_log.completed_at) if event_log.completed_at else None,
        }
        for event_log, final in islice(failed, MOST_ERRORS)
    ]


def _percentiles(values: list[float]) -> dict[str, float] | None:
    """Return the median and the 95th percentile in seconds; None of nothing."""
    if not values:
        return None
    values.sort()
    last = len(values) - 1
    return {name: round(values[round(part * last)], 4) for name, part in _INDEX.items()}
