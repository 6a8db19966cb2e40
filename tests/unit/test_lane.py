"""One model's lane: trials, retries, replicas, and that each flight is in one place."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bitinglip.scheduling.balance import Balancer
from bitinglip.scheduling.fairness import FairQueue, Share
from bitinglip.scheduling.inbox import Inbox
from bitinglip.scheduling.job import TextJob
from bitinglip.scheduling.lane import Flight, Lane
from bitinglip.scheduling.replica import Replica
from workers.protocol import Sampling


def flight(name: str = "x", key: str = "k") -> Flight:
    job = TextJob(id=name, model="m", key_id=key, prompt="p", sampling=Sampling(max_tokens=1))
    return Flight(Inbox(job), Share(key), 1.0)


def lane() -> Lane:
    return Lane("m", FairQueue(1e9), Balancer())


def replica(index: int = 0, slots: int = 4, **facts: Any) -> Replica:
    return Replica("m", index, {"cpu": 1}, 0.0, state="ready", slots=slots, **facts)


def begun(one: Lane, *replicas: Replica) -> list[str]:
    return [each.id for each, _ in one.begin(replicas, 0.0)]


def test_replicas_are_filled_evenly() -> None:
    one, two = replica(0), replica(1)
    ours = lane()
    for number in range(6):
        each = flight(str(number))
        ours.waiting.push(each, each.share, 1.0, 0.0)
    assert len(begun(ours, one, two)) == 6
    assert (one.in_flight, two.in_flight) == (3, 3)


def test_a_silent_replica_gets_nothing() -> None:
    one, two = replica(0, silent=True), replica(1)
    ours = lane()
    for number in range(6):
        each = flight(str(number))
        ours.waiting.push(each, each.share, 1.0, 0.0)
    assert len(begun(ours, one, two)) == 4
    assert one.in_flight == 0


def test_suspects_run_by_themselves_the_likeliest_first() -> None:
    ours, one = lane(), replica()
    late, soon = flight("late"), flight("soon")
    late.exposure, soon.exposure = 4.0, 0.1
    ours.suspect([late, soon])
    other = flight("other")
    ours.waiting.push(other, other.share, 1.0, 0.0)
    assert begun(ours, one) == ["soon"]
    assert begun(ours, one) == []  # the worker is its own until it is acquitted
    ours.acquit(soon)
    assert begun(ours, one) == []  # it empties, so that the next trial can begin
    ours.land(soon, 0.0)
    assert begun(ours, one) == ["late"]
    ours.acquit(late)
    assert begun(ours, one) == ["other"]  # none is left to be tried


def test_a_trial_leaves_the_other_replicas_to_the_others() -> None:
    ours, one, two = lane(), replica(0), replica(1)
    ours.suspect([flight("suspect")])
    for number in range(8):
        each = flight(str(number))
        ours.waiting.push(each, each.share, 1.0, 0.0)
    assert begun(ours, one, two) == ["suspect", "0", "1", "2", "3"]
    assert (one.in_flight, two.in_flight) == (1, 4)


def test_with_the_culprit_caught_the_others_are_above_suspicion() -> None:
    ours, one = lane(), replica()
    suspects = [flight(str(number)) for number in range(3)]
    for each in suspects:
        each.deaths = 2
    ours.suspect(suspects)
    assert begun(ours, one) == ["0"]
    ours.land(suspects[0], 0.0)
    ours.clear()
    assert sorted(begun(ours, one)) == ["1", "2"]
    assert [each.deaths for each in suspects[1:]] == [0, 0]


def test_who_lost_a_worker_goes_before_who_came_later() -> None:
    ours, one = lane(), replica(slots=1)
    first, again = flight("first"), flight("again")
    ours.waiting.push(first, first.share, 1.0, 0.0)
    ours.again.append(again)
    assert begun(ours, one) == ["again"]
    assert [each.id for each in ours.order(0.0)] == ["first"]


class LaneMachine(RuleBasedStateMachine):
    """Random lives of flights: each is in exactly one place, and the replicas' books add up."""

    def __init__(self) -> None:
        super().__init__()
        self.lane = lane()
        self.replicas = [replica(0, 2), replica(1, 3)]
        self.alive: dict[str, Flight] = {}
        self.number = 0

    @rule(key=st.sampled_from("ab"))
    def arrive(self, key: str) -> None:
        each = flight(str(self.number), key)
        self.number += 1
        self.alive[each.id] = each
        self.lane.waiting.push(each, each.share, each.work, 0.0)

    @rule()
    def begin(self) -> None:
        for each, chosen in self.lane.begin(self.replicas, 0.0):
            assert each.replica is chosen
            assert chosen.in_flight <= chosen.slots

    @precondition(lambda self: self.lane.running)
    @rule(data=st.data())
    def land(self, data: st.DataObject) -> None:
        each = data.draw(st.sampled_from(sorted(self.lane.running.values(), key=lambda f: f.id)))
        self.lane.land(each, 0.0)
        del self.alive[each.id]

    @precondition(lambda self: self.lane.depth)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        each = data.draw(st.sampled_from(sorted(self.lane.waiters(), key=lambda f: f.id)))
        self.lane.forget(each)
        del self.alive[each.id]

    @precondition(lambda self: self.lane.running)
    @rule(index=st.integers(0, 1), tried=st.booleans())
    def die(self, index: int, tried: bool) -> None:
        lost = [f for f in self.lane.running.values() if f.replica is self.replicas[index]]
        for each in lost:
            self.lane.land(each, 0.0)
        if tried:
            self.lane.suspect(lost)
        else:
            self.lane.again.extendleft(lost)
        self.replicas[index] = replica(index, 2 + index)

    @rule()
    def acquit(self) -> None:
        if self.lane.trial is not None:
            self.lane.acquit(self.lane.trial)

    @invariant()
    def everybody_is_in_one_place(self) -> None:
        places = [*self.lane.waiters(), *self.lane.running.values()]
        assert sorted(each.id for each in places) == sorted(self.alive)
        assert self.lane.depth == sum(1 for _ in self.lane.waiters())
        assert sum(each.in_flight for each in self.replicas) == len(self.lane.running)
        assert self.lane.trial is None or self.lane.trial.id in self.lane.running


TestLaneMachine = LaneMachine.TestCase
TestLaneMachine.settings = settings(max_examples=60, stateful_step_count=40)
