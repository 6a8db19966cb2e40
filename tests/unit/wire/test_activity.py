"""Snapshots of jobs: queues by tier, the last minute, the last errors."""

from bitinglip.scheduling.event_log import EventLog
from bitinglip.scheduling.queue.priority import Priority
from bitinglip.settings import Tiers
from bitinglip.wire.admin.activity import MOST_ERRORS, last_errors, last_minute, queues_by_tier
from tests.support.jobs import text_job
from workers import protocol


def _log(at: float = 0.0, *, rank: int = 0, model: str = "m") -> EventLog:
    return EventLog(text_job(model=model, priority=Priority(rank=rank)), lambda: at)


def _fail(event_log: EventLog) -> EventLog:
    event_log.put(protocol.Failed(id=event_log.job.id, code="OUT_OF_MEMORY", message="no room"))
    return event_log


def test_queues_count_jobs_by_tier_and_none_that_has_ended() -> None:
    tiers = Tiers()
    waiting, running, ended = _log(), _log(rank=tiers.pro.priority), _fail(_log())
    running.dispatch("w/0")
    counts = {each["tier"]: each for each in queues_by_tier([waiting, running, ended], tiers)}
    assert list(counts) == ["operator", "enterprise", "pro", "free"]
    assert (counts["free"]["waiting"], counts["free"]["running"]) == (1, 0)
    assert (counts["pro"]["waiting"], counts["pro"]["running"]) == (0, 1)


def test_last_minute_leaves_out_what_is_older_and_what_still_runs() -> None:
    now = 1000.0
    assert last_minute([_fail(_log(now - 61)), _log(now)], now)["jobs"] == 0
    found = last_minute([_fail(_log(now - 59)), _fail(_log(now))], now)
    assert (found["jobs"], found["failed"], found["cancelled"]) == (2, 2, 0)
    assert found["first_token"] is None
    assert found["queue"] == {"p50": 0, "p95": 0}


def test_last_errors_are_few_of_the_models_that_may_be_seen_and_messages_are_for_admins() -> None:
    logs = [_fail(_log(model="mine")) for _ in range(MOST_ERRORS + 5)]
    logs += [_fail(_log(model="other")), _log()]
    shown = last_errors(logs, "mine".__eq__, messages=True)
    assert [each["message"] for each in shown] == ["no room"] * MOST_ERRORS
    assert {each["model"] for each in shown} == {"mine"}
    assert last_errors(logs, "other".__eq__, messages=False)[0]["message"] is None
