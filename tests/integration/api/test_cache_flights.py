"""Requests at once: one job runs for equal ones; each keeps its client, key and deadline."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest

from bitinglip.redis.link import RedisLink
from bitinglip.results.cache.redis_answers import AnswersInRedis
from bitinglip.settings.redis import Redis as RedisSettings
from bitinglip.telemetry.health import Health
from tests.support.api_server import Served, serve
from tests.support.cache_rig import (
    WAIT_SECONDS,
    Engine,
    Rush,
    ask,
    joined,
    new_key,
    outcome,
    text_of,
)
from tests.support.http_client import NATIVE, error_of
from tests.support.raw_http import asked
from tests.support.redis import RedisServer
from tests.support.wait import eventually


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> Iterator[Served]:
    on = {"responses": True}
    with serve(tmp_path_factory.mktemp("cache"), engine, slots=2, cache=on) as served:
        yield served


@pytest.fixture(scope="module")
def sharing(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> Iterator[Served]:
    """Provide a server whose keys share their answers."""
    with serve(
        tmp_path_factory.mktemp("shared"), engine, cache={"responses": True, "scope": "all"}
    ) as served:
        yield served


@pytest.fixture(autouse=True)
def _gate(served: Served, engine: Engine) -> Iterator[None]:
    engine.gate.clear()
    yield
    engine.gate.set()
    served.wait_idle()
    assert not served.services.cache._flights


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    headers = served.headers("inference:text")
    with httpx.Client(base_url=served.url, headers=headers, timeout=WAIT_SECONDS) as client:
        yield client


@pytest.fixture
def admin(served: Served) -> Iterator[httpx.Client]:
    headers = served.headers("admin")
    with httpx.Client(base_url=served.url, headers=headers, timeout=WAIT_SECONDS) as admin:
        yield admin


@pytest.fixture
def crowd() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as crowd:
        yield crowd


@pytest.fixture
def rush(served: Served, crowd: ThreadPoolExecutor) -> Rush:
    return Rush(served, crowd)


def test_cache_follows_no_request_of_another_key(
    served: Served, rush: Rush, admin: httpx.Client, engine: Engine
) -> None:
    """Check that a job of another key neither answers a request nor speeds it up."""
    keys = (served.headers("inference:text"), new_key(admin)[1])
    answers = [rush.post(ask("!gate"), key) for key in keys]
    eventually(lambda: engine.runs["!gate"] == 2)
    engine.gate.set()
    assert {outcome(each.result()) for each in answers} == {"MISS"}
    assert len({text_of(each.result()) for each in answers}) == 2


def test_cache_runs_one_job_for_requests_at_once(
    served: Served, rush: Rush, engine: Engine
) -> None:
    body = ask("!gate many")
    answers = [rush.post({**body, "stream": number % 2 == 1}) for number in range(8)]
    eventually(joined(rush, 8))
    held = served.services.dispatcher.books()["input_bytes"]
    assert held >= 8 * len("!gate many")  # those that wait are counted, too
    engine.gate.set()
    kinds = Counter(outcome(each.result()) for each in answers)
    assert kinds == {"MISS": 1, "HIT": 7}
    assert engine.runs["!gate many"] == 1
    assert len({text_of(each.result()) for each in answers[::2]}) == 1
    assert served.services.dispatcher.books()["input_bytes"] == 0


def test_cache_lets_no_request_wait_for_one_of_lower_priority(
    served: Served, rush: Rush, engine: Engine
) -> None:
    busy = [rush.post(ask(f"!gate busy {number}")) for number in range(2)]
    eventually(lambda: served.services.dispatcher.running("demo") == 2)
    low = rush.post(ask("!gate turn", priority="low"))
    eventually(lambda: served.services.dispatcher.queued == 1)
    high = rush.post(ask("!gate turn", priority="high"))
    eventually(lambda: served.services.dispatcher.queued == 2)  # it does not wait for the other
    low_too = rush.post(ask("!gate turn", priority="low"))
    eventually(joined(rush, 4))  # and those that follow now go with the higher one
    assert served.services.dispatcher.queued == 2
    engine.gate.set()
    assert [outcome(each.result()) for each in (low, high, low_too)] == ["MISS", "MISS", "HIT"]
    assert text_of(high.result()) == text_of(low_too.result())
    assert {each.result().status_code for each in busy} == {200}
    assert engine.runs["!gate turn"] == 2


def test_cache_hands_over_when_the_leader_fails(rush: Rush, engine: Engine) -> None:
    answers = [rush.post(ask("!gate once")) for _ in range(4)]
    eventually(joined(rush, 4))
    engine.gate.set()
    statuses = sorted(each.result().status_code for each in answers)
    assert statuses == [200, 200, 200, 500]
    assert engine.runs["!gate once"] == 2


def test_cache_refuses_followers_with_a_leader_whose_request_is_at_fault(
    rush: Rush, engine: Engine
) -> None:
    answers = [rush.post(ask("!gate long")) for _ in range(4)]
    eventually(joined(rush, 4))
    engine.gate.set()
    for each in answers:
        error_of(each.result(), 400, "CONTEXT_LENGTH_EXCEEDED")
    assert engine.runs["!gate long"] == 1


def test_cache_hands_over_when_the_leader_is_cancelled_or_times_out(
    served: Served, rush: Rush, client: httpx.Client, engine: Engine
) -> None:
    lead = rush.post(ask("!gate cancel"))
    eventually(joined(rush, 1))
    follow = rush.post(ask("!gate cancel"))
    eventually(joined(rush, 2))
    client.delete(f"/api/v1/tasks/{served.workers.jobs[-1].id}")
    error_of(lead.result(), 409, "TASK_CANCELLED")
    eventually(lambda: engine.runs["!gate cancel"] == 2)
    hurried = rush.post(ask("!gate cancel", timeout=0.1))
    error_of(hurried.result(), 504, "TIMEOUT")  # a follower's own deadline
    assert engine.runs["!gate cancel"] == 2
    engine.gate.set()
    assert outcome(follow.result()) == "MISS"
    engine.gate.clear()
    lead = rush.post(ask("!gate late", timeout=0.5))
    eventually(joined(rush, 1))
    follow = rush.post(ask("!gate late"))
    error_of(lead.result(), 504, "TIMEOUT")
    eventually(lambda: engine.runs["!gate late"] == 2)
    engine.gate.set()
    assert outcome(follow.result()) == "MISS"


def test_cache_keeps_the_job_for_followers_when_the_leader_disconnects(
    served: Served, rush: Rush, engine: Engine
) -> None:
    cancelled = len(served.workers.cancelled)
    body = ask("!gate leave")
    with asked(served, NATIVE, body):
        eventually(joined(rush, 1))
        with asked(served, NATIVE, body):
            eventually(joined(rush, 2))
            stay = rush.post(body)
            eventually(joined(rush, 3))
    eventually(joined(rush, 1))
    engine.gate.set()
    assert outcome(stay.result()) == "HIT"
    assert engine.runs["!gate leave"] == 1
    assert len(served.workers.cancelled) == cancelled


def test_cache_ends_a_job_without_waiting_requests(
    served: Served, rush: Rush, engine: Engine
) -> None:
    cancelled = len(served.workers.cancelled)
    with ExitStack() as gone:
        for count in range(3):
            gone.enter_context(asked(served, NATIVE, ask("!gate nobody")))
            eventually(joined(rush, count + 1))
    eventually(lambda: len(served.workers.cancelled) > cancelled)
    served.wait_idle()
    assert engine.runs["!gate nobody"] == 1


def test_cache_follower_ends_with_its_key_and_outlives_its_leader_s(
    sharing: Served, crowd: ThreadPoolExecutor, engine: Engine
) -> None:
    rush, headers = Rush(sharing, crowd), sharing.headers("admin")
    with httpx.Client(base_url=sharing.url, headers=headers, timeout=WAIT_SECONDS) as admin:
        leader, follower, third = (new_key(admin) for _ in range(3))
        first = rush.post(ask("!gate keys"), leader[1])
        eventually(joined(rush, 1))
        second, last = (rush.post(ask("!gate keys"), each[1]) for each in (follower, third))
        eventually(joined(rush, 3))
        admin.delete(f"/api/v1/keys/{follower[0]}")
        error_of(second.result(), 409, "TASK_CANCELLED")
        assert engine.runs["!gate keys"] == 1
        admin.delete(f"/api/v1/keys/{leader[0]}")
        error_of(first.result(), 409, "TASK_CANCELLED")
        eventually(lambda: engine.runs["!gate keys"] == 2)
        engine.gate.set()
        assert outcome(last.result()) == "MISS"
    sharing.wait_idle()


def test_cache_does_not_keep_what_was_cleared_while_it_ran(
    rush: Rush, admin: httpx.Client, client: httpx.Client, engine: Engine
) -> None:
    answer = rush.post(ask("!gate clear"))
    eventually(lambda: engine.runs["!gate clear"] == 1)
    admin.delete("/api/v1/cache")
    engine.gate.set()
    assert outcome(answer.result()) == "MISS"
    assert outcome(client.post(NATIVE, json=ask("!gate clear"))) == "MISS"


@pytest.fixture
def answers(served: Served, redis: RedisServer) -> Iterator[RedisServer]:
    """Have the server keep its answers in a Redis."""
    cache = served.services.cache

    async def connect() -> RedisLink:
        settings = RedisSettings(url=redis.url, timeout_ms=5000)
        link = await RedisLink.opened(settings, Health())
        cache._shared = AnswersInRedis(link, b"s" * 32, ttl=60, most=1 << 20)
        return link

    async def leave(link: RedisLink) -> None:
        assert cache._shared is not None
        await cache._shared.close()
        await link.close()

    link = asyncio.run_coroutine_threadsafe(connect(), served.loop).result(WAIT_SECONDS)
    yield redis
    asyncio.run_coroutine_threadsafe(leave(link), served.loop).result(WAIT_SECONDS)
    cache._shared = None


def test_cache_gives_others_nothing_that_was_cleared_while_it_ran(
    served: Served, answers: RedisServer, rush: Rush, client: httpx.Client, engine: Engine
) -> None:
    """Words that are forbidden since would name it as checked for them."""
    cache = served.services.cache
    running = rush.post(ask("!gate words"))
    eventually(lambda: engine.runs["!gate words"] == 1)
    served.loop.call_soon_threadsafe(cache.clear)
    eventually(lambda: not cache._flights)
    engine.gate.set()
    assert outcome(running.result()) == "MISS"
    assert outcome(client.post(NATIVE, json=ask("kept for all"))) == "MISS"
    eventually(lambda: not cache._settling)
    with answers.client() as others:
        assert len(others.keys("bitinglip:answer:*")) == 1
