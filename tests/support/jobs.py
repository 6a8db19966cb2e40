"""Jobs of the gateway, and what requests become jobs with, without any server."""

from pathlib import Path
from typing import Any

from bitinglip.scheduling.job import Job, new_task_id
from bitinglip.scheduling.queue.priority import Priority
from bitinglip.settings import Model, Tier
from bitinglip.settings.limits import Limits
from bitinglip.wire.job_context import JobContext
from workers import protocol


def text_job(
    prompt: str = "p",
    *,
    name: str | None = None,
    max_tokens: int = 1,
    stream: bool = False,
    **envelope: Any,
) -> Job:
    """Make a job for text of model m and key k; ``envelope`` are fields of Job."""
    work = protocol.TextJob(
        id=name or new_task_id(),
        prompt=prompt,
        sampling=protocol.Sampling(max_tokens=max_tokens),
        stream=stream,
    )
    return Job(work=work, **{"model": "m", "key_id": "k", **envelope})


def job_context(model_settings: Model | None = None) -> JobContext:
    """Return the context in which a request of key k for model m becomes a job."""
    return JobContext(
        model="m",
        model_settings=model_settings or Model(),
        limits=Limits(),
        tier=Tier(),
        key_id="k",
        timeout=600.0,
        priority=Priority(),
        folder=Path("nowhere"),
        uploads=Path("nowhere"),
    )
