"""Jobs in flight, for tests of queues without workers."""

from typing import Any

from bitinglip.scheduling.dispatch.model_queue import InFlightJob
from bitinglip.scheduling.event_log import EventLog
from bitinglip.scheduling.queue.fair_queue import FairShare
from tests.support.jobs import text_job


def entry(
    name: str = "x", key: str = "k", session: str | None = None, **fields: Any
) -> InFlightJob:
    job = text_job(name=name, key_id=key, session=session, **fields)
    return InFlightJob(EventLog(job), FairShare(key), job.model, 1.0)
