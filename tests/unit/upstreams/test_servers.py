"""Choice among the servers of an upstream model."""

import pytest

from bitinglip.settings.models import Balancing
from bitinglip.upstreams.servers import Server, Servers
from workers.protocol import ChatMessage, Sampling, TextJob

URLS = [f"http://s{number}/v1" for number in range(4)]


def job(words: str = "hello", scope: str | None = None) -> TextJob:
    turns = (ChatMessage("system", "s"), ChatMessage("user", words), ChatMessage("assistant", "a"))
    return TextJob(id="j", messages=turns, sampling=Sampling(max_tokens=1), prefix_scope=scope)


@pytest.fixture
def clock() -> list[float]:
    return [100.0]


def made(clock: list[float], balancing: Balancing = "least_work") -> Servers:
    return Servers(URLS, balancing, lambda: clock[0])


def take_turn(servers: Servers) -> Server:
    server = servers.order(job())[0]
    servers.took(server)
    server.running -= 1
    return server


@pytest.mark.parametrize("balancing", ["least_work", "round_robin"])
def test_servers_take_turns(clock: list[float], balancing: Balancing) -> None:
    servers = made(clock, balancing)
    asked = [take_turn(servers) for _ in range(8)]
    assert asked == [*servers.all] * 2


def test_server_that_comes_back_gets_no_more_than_its_turns(clock: list[float]) -> None:
    servers = made(clock, "round_robin")
    back = servers.all[0]
    servers.failed(back, "away")
    for _ in range(30):
        assert take_turn(servers) is not back
    servers.answered(back)
    assert [take_turn(servers) for _ in range(8)].count(back) == 2


def test_server_that_does_least_is_asked_first(clock: list[float]) -> None:
    servers = made(clock)
    for number, each in enumerate(servers.all):
        each.running = number != 2
    assert servers.order(job())[0] is servers.all[2]


def test_server_of_a_conversation_stays_and_only_its_own_move(clock: list[float]) -> None:
    servers = made(clock, "sticky")
    first = {n: servers.order(job(str(n)))[0] for n in range(40)}
    assert len(set(first.values())) == 4
    assert servers.order(job("7"))[0] is first[7]
    gone = first[7]
    servers.failed(gone, "away")
    for number, server in first.items():
        now = servers.order(job(str(number)))[0]
        assert (now is server) == (server is not gone)
    scoped = {servers.order(job("7", scope))[0] for scope in "abcdefgh"}
    assert len(scoped) > 1  # keys with the same words are others' conversations


def test_server_that_failed_is_tried_last_and_later_again(clock: list[float]) -> None:
    servers = made(clock)
    bad = servers.all[0]
    for failures, pause in ((1, 1.0), (2, 2.0), (3, 4.0), (12, 60.0)):
        while bad.failures < failures:
            servers.failed(bad, "away")
        assert servers.order(job())[-1] is bad
        assert bad not in servers.take_due()
        assert bad.again_at - clock[0] == pause
        clock[0] = bad.again_at
        assert bad in servers.take_due()
        assert bad not in servers.take_due()  # one is enough
    servers.answered(bad)
    assert bad.is_well
    assert not servers.take_due()


def test_server_of_a_busy_conversation_is_passed_over_beyond_its_part(clock: list[float]) -> None:
    """Bounded loads: sticky clients or not, no server has a quarter more than the mean."""
    servers = made(clock, "sticky")
    for count in range(1, 41):
        servers.took(servers.order(job("all the same"))[0])
        most = max(each.running for each in servers.all)
        assert most <= -(-1.25 * count // 4)
    first = servers.order(job("all the same"))[0]
    for each in servers.all:
        each.running = 0
    assert servers.order(job("all the same"))[0] is servers.order(job("all the same"))[0]
    assert first in servers.all


def test_server_that_failed_gets_its_part_back_by_and_by(clock: list[float]) -> None:
    servers = made(clock)
    weak = servers.all[0]
    servers.failed(weak, "away")
    servers.answered(weak)
    for each in servers.all:
        each.running = 3
    assert servers.order(job())[-1] is weak
    for _ in range(20):
        servers.answered(weak)
    weak.running = 2
    assert servers.order(job())[0] is weak
