"""Jobs in flight, for tests of queues without workers."""

from bitinglip.scheduling.dispatch.model_queue import InFlightJob
from bitinglip.scheduling.event_log import EventLog
from bitinglip.scheduling.job import TextJob
from bitinglip.scheduling.queue.fair_queue import FairShare
from workers.protocol import Sampling


def entry(name: str = "x", key: str = "k") -> InFlightJob:
    job = TextJob(id=name, model="m", key_id=key, prompt="p", sampling=Sampling(max_tokens=1))
    return InFlightJob(EventLog(job), FairShare(key), 1.0)
