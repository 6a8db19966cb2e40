"""Shows the last requests, and where the time of each went."""

from datetime import UTC, datetime
from typing import Any

from bitinglip.scheduling.event_log import EventLog
from bitinglip.scheduling.usage import tokens_of
from bitinglip.telemetry.last_requests import LastRequest
from bitinglip.wire.errors import timestamp


def request_info(
    request: LastRequest, key_name: str | None, event_log: EventLog | None
) -> dict[str, Any]:
    """Describe a request; ``event_log``: of its job, None if there was none or it is gone."""
    prompt, completion = tokens_of(event_log) if event_log else (None, None)
    return {
        "request_id": request.request_id,
        "at": timestamp(datetime.fromtimestamp(request.ended, UTC)),
        "method": request.method,
        "route": request.endpoint,
        "status": request.status,
        "key_id": request.key_id,
        "key_name": key_name,
        "model": request.model,
        "task_id": request.job_id,
        "asynchronous": event_log.job.asynchronous if event_log else None,
        "kind": event_log.job.kind if event_log else None,
        "worker": event_log.worker_id if event_log else None,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "seconds": _stages(request, event_log),
    }


def _stages(request: LastRequest, event_log: EventLog | None) -> dict[str, float | None]:
    """Return the seconds of each stage, None of one that there was not.

    ``total`` is from the first byte of the request to the last one of the answer, ``overhead``
    what neither queue nor worker had of it; ``first_token`` and ``work`` begin at the worker. Of an
    asynchronous job the stages are the job's, and go on after the answer of the request that made
    it; who only watches a job has no ``overhead``.
    """
    stages: dict[str, float | None] = dict.fromkeys(("queue", "load", "first_token", "work"))
    own: float | None = request.seconds
    if event_log is not None and event_log.ended is not None:
        begun = event_log.dispatched
        load = 0.0
        if event_log.load_began is not None:
            load = (begun or event_log.ended) - event_log.load_began
            stages["load"] = load
        stages["queue"] = max(0.0, event_log.queue_time - load)
        if begun is not None:
            stages["work"] = event_log.ended - begun
            if event_log.first_token is not None:
                stages["first_token"] = event_log.first_token - begun
        if not event_log.job.asynchronous:
            own = max(0.0, request.seconds - (event_log.ended - event_log.submitted))
    if request.job_id is not None and request.method == "GET":
        own = None  # the time that it watched is not the gateway's
    stages |= {"total": request.seconds, "overhead": own}
    return {name: _rounded(value) for name, value in stages.items()}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
