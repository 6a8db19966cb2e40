"""Choice of the replica for a job."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from bitinglip.scheduling.dispatch.balancer import Balancer


@dataclass
class Candidate:
    id: str
    cost: float = 0.0
    health: float = 1.0


def nobody() -> bytes:
    raise AssertionError("this policy asks for no affinity")


def replicas(count: int) -> list[Candidate]:
    return [Candidate(f"m/{number}") for number in range(count)]


def test_balancer_least_work_chooses_the_replica_with_the_least_work() -> None:
    found = [Candidate("a", 5.0), Candidate("b", 2.0), Candidate("c", 9.0)]
    assert Balancer().choose(found, nobody, 5.0) == 1


def test_balancer_round_robin_takes_turns_among_replicas_with_free_slots() -> None:
    balancer, found = Balancer("round_robin"), replicas(3)
    turns = Counter(balancer.choose(found, nobody, 0.0) for _ in range(30))
    assert turns == {0: 10, 1: 10, 2: 10}
    assert [balancer.choose(found[:2], nobody, 0.0) for _ in range(4)] == [0, 1, 0, 1]
    assert balancer.choose(found, nobody, 0.0) == 2  # it was passed over for longest


def test_balancer_weighted_gives_the_faster_replica_more() -> None:
    balancer = Balancer("weighted")
    found = [Candidate("slow", health=10.0), Candidate("quick", health=30.0)]
    for _ in range(40):
        found[balancer.choose(found, nobody, 0.0)].cost += 1
    assert (found[0].cost, found[1].cost) == (10, 30)


def test_balancer_sticky_keeps_a_replica_until_it_is_too_full() -> None:
    balancer, found = Balancer("sticky"), replicas(4)
    homes = {key: balancer.choose(found, _affinity(key), 0.0) for key in _keys(200)}
    assert {homes[key] for key in homes} == {0, 1, 2, 3}
    assert homes == {key: balancer.choose(found, _affinity(key), 0.0) for key in _keys(200)}
    key = next(iter(homes))
    found[homes[key]].cost = 100.0
    assert balancer.choose(found, lambda: key, 25.0) != homes[key]


def test_balancer_sticky_moves_only_jobs_whose_replica_is_gone() -> None:
    balancer, found = Balancer("sticky"), replicas(4)
    before = {key: found[balancer.choose(found, _affinity(key), 0.0)].id for key in _keys(200)}
    fewer = found[:3]
    after = {key: fewer[balancer.choose(fewer, _affinity(key), 0.0)].id for key in _keys(200)}
    moved = [key for key in before if before[key] != after[key]]
    assert {before[key] for key in moved} == {"m/3"}


def _affinity(key: bytes) -> Callable[[], bytes]:
    return lambda: key


def _keys(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]
