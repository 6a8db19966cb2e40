"""One model's queue: trials, retries, replicas, and that each flight is in one place."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bitinglip.scheduling.dispatch.balancer import Balancer
from bitinglip.scheduling.dispatch.model_queue import InFlightJob, ModelQueue
from bitinglip.scheduling.dispatch.sessions import MOST_OF_KEY, MOST_SESSIONS
from bitinglip.scheduling.models.state import Replica
from bitinglip.scheduling.queue.fair_queue import FairQueue
from tests.support.in_flight import entry
from workers.protocol import TextLora


def model_queue() -> ModelQueue:
    return ModelQueue("m", FairQueue(1e9), Balancer())


def replica(index: int = 0, slots: int = 4, **facts: Any) -> Replica:
    return Replica("m", index, {"cpu": 1}, 0.0, state="ready", slots=slots, **facts)


def begun(one: ModelQueue, *replicas: Replica) -> list[str]:
    return [each.id for each, _ in one.begin(replicas, 0.0)]


def test_dispatch_fills_replicas_evenly() -> None:
    one, two = replica(0), replica(1)
    ours = model_queue()
    for number in range(6):
        each = entry(str(number))
        ours.waiting.push(each, each.share, 1.0, 0.0)
    assert len(begun(ours, one, two)) == 6
    assert (one.in_flight, two.in_flight) == (3, 3)


def test_dispatch_of_another_model_names_its_lora_and_counts_apart() -> None:
    ours, one = model_queue(), replica(slots=2)
    for name, model in (("a", "m"), ("b", "lora"), ("c", "lora"), ("d", "m")):
        each = entry(name, model=model)
        each.host = "m"
        ours.waiting.push(each, each.share, 1.0, 0.0)
    sent = {
        each.id: each.message(lambda name: TextLora(path=f"lent/{name}"))
        for each, _ in ours.begin([one], 0.0)
    }
    loras = {name: getattr(message, "lora", None) for name, message in sent.items()}
    assert loras == {"a": None, "b": TextLora(path="lent/lora")}
    assert (ours.of("m"), ours.of("lora"), ours.of("other")) == ((2, 2), (1, 1), (0, 0))


def test_dispatch_sends_nothing_to_a_silent_replica() -> None:
    one, two = replica(0, silent=True), replica(1)
    ours = model_queue()
    for number in range(6):
        each = entry(str(number))
        ours.waiting.push(each, each.share, 1.0, 0.0)
    assert len(begun(ours, one, two)) == 4
    assert one.in_flight == 0


def test_isolation_runs_suspects_alone_the_likeliest_first() -> None:
    ours, one = model_queue(), replica()
    late, soon = entry("late"), entry("soon")
    late.ran_for, soon.ran_for = 4.0, 0.1
    ours.isolate([late, soon])
    other = entry("other")
    ours.waiting.push(other, other.share, 1.0, 0.0)
    assert begun(ours, one) == ["soon"]
    assert begun(ours, one) == []  # the worker is its own until it is acquitted
    ours.end_isolation(soon)
    assert begun(ours, one) == []  # it empties, so that the next trial can begin
    ours.release_slot(soon, 0.0)
    assert begun(ours, one) == ["late"]
    ours.end_isolation(late)
    assert begun(ours, one) == ["other"]  # none is left to be tried


def test_isolation_leaves_the_other_replicas_to_other_jobs() -> None:
    ours, one, two = model_queue(), replica(0), replica(1)
    ours.isolate([entry("suspect")])
    for number in range(8):
        each = entry(str(number))
        ours.waiting.push(each, each.share, 1.0, 0.0)
    assert begun(ours, one, two) == ["suspect", "0", "1", "2", "3"]
    assert (one.in_flight, two.in_flight) == (1, 4)


def test_isolation_clears_the_other_suspects_once_the_offender_is_found() -> None:
    ours, one = model_queue(), replica()
    suspects = [entry(str(number)) for number in range(3)]
    for each in suspects:
        each.deaths = 2
    ours.isolate(suspects)
    assert begun(ours, one) == ["0"]
    ours.release_slot(suspects[0], 0.0)
    ours.clear_suspects()
    assert sorted(begun(ours, one)) == ["1", "2"]
    assert [each.deaths for each in suspects[1:]] == [0, 0]


def test_retry_goes_before_jobs_that_came_later() -> None:
    ours, one = model_queue(), replica(slots=1)
    first, retry_queue = entry("first"), entry("again")
    ours.waiting.push(first, first.share, 1.0, 0.0)
    ours.retry_queue.append(retry_queue)
    assert begun(ours, one) == ["again"]
    assert [each.id for each in ours.order(0.0)] == ["first"]


def push(ours: ModelQueue, name: str, key: str = "k", session: str | None = None) -> InFlightJob:
    each = entry(name, key, session)
    ours.waiting.push(each, each.share, 1.0, 0.0)
    return each


def test_session_stays_on_its_replica_and_others_pass_it_while_that_is_full() -> None:
    ours, one, two = model_queue(), replica(0, slots=1), replica(1, slots=1)
    first = push(ours, "first", session="s")
    assert begun(ours, one, two) == ["first"]
    push(ours, "second", session="s")
    push(ours, "plain")
    assert begun(ours, one, two) == ["plain"]
    assert (ours.depth, [each.id for each in ours.order(0.0)]) == (1, ["second"])
    assert ours.counts() == {"k": 1}
    home = first.replica
    ours.release_slot(first, 0.0)
    push(ours, "late")
    assert [(each.id, on) for each, on in ours.begin([one, two], 0.0)] == [("second", home)]


def test_session_of_another_key_is_another_session() -> None:
    ours, one, two = model_queue(), replica(0), replica(1)
    ours.sessions.bind(("k", "s"), one)
    ours.sessions.bind(("other", "s"), two)
    push(ours, "a", "k", "s")
    push(ours, "b", "other", "s")
    assert {each.id: on for each, on in ours.begin([one, two], 0.0)} == {"a": one, "b": two}


def test_session_moves_once_its_replica_has_gone() -> None:
    ours, one, two = model_queue(), replica(0, slots=1), replica(1, slots=1)
    push(ours, "first", session="s")
    [(_, home)] = ours.begin([one, two], 0.0)
    other = two if home is one else one
    push(ours, "second", session="s")
    assert begun(ours, one, two) == []
    assert begun(ours, other) == ["second"]
    assert ours.sessions.replica(("k", "s"), [one, two]) is other


def test_sessions_keep_no_replica_from_others() -> None:
    """Check that no more jobs wait for a replica than it runs; the rest go where there is room."""
    ours, one, two = model_queue(), replica(0, slots=2), replica(1, slots=2)
    ours.sessions.bind(("k", "s"), one)
    first = [push(ours, f"first{number}", session="s") for number in range(2)]
    begun(ours, one)
    for number in range(5):
        push(ours, f"pinned{number}", session="s")
    assert begun(ours, one, two) == ["pinned2", "pinned3"]
    assert len(ours.sessions) == 2
    push(ours, "other", "another key")
    for each in first:
        ours.release_slot(each, 0.0)
    assert begun(ours, one, two) == ["pinned0", "pinned1"]
    assert len(ours.sessions) == 0


def test_session_that_waits_can_be_forgotten() -> None:
    ours, one, two = model_queue(), replica(0, slots=1), replica(1, slots=1)
    push(ours, "first", session="s")
    begun(ours, one, two)
    gone = push(ours, "second", session="s")
    begun(ours, one, two)
    ours.forget(gone)
    assert (ours.depth, begun(ours, one, two)) == (0, [])


def test_sessions_that_are_remembered_are_bounded() -> None:
    ours, one = model_queue(), replica()
    for number in range(MOST_SESSIONS + 1):
        ours.sessions.bind((f"k{number // 100}", str(number)), one)
    assert ours.sessions.replica(("k0", "0"), [one]) is None
    assert ours.sessions.replica(("k0", "1"), [one]) is one
    for number in range(MOST_SESSIONS):  # those of a key that is used no more go first
        ours.sessions.bind(("other", str(number % 10)), one)
    assert ours.sessions.replica(("k1", "100"), [one]) is one


def test_sessions_of_one_key_push_out_no_other_key_s() -> None:
    ours, one = model_queue(), replica()
    ours.sessions.bind(("quiet", "s"), one)
    for number in range(2 * MOST_SESSIONS):
        ours.sessions.bind(("busy", str(number)), one)
    assert ours.sessions.replica(("quiet", "s"), [one]) is one
    last = 2 * MOST_SESSIONS
    assert ours.sessions.replica(("busy", str(last - MOST_OF_KEY)), [one]) is one
    assert ours.sessions.replica(("busy", str(last - MOST_OF_KEY - 1)), [one]) is None


class ModelQueueMachine(RuleBasedStateMachine):
    """Plays random lives of flights: each is in exactly one place, and the replicas' books add
    up."""

    def __init__(self) -> None:
        super().__init__()
        self.model_queue = model_queue()
        self.replicas = [replica(0, 2), replica(1, 3)]
        self.alive: dict[str, InFlightJob] = {}
        self.number = 0

    @rule(key=st.sampled_from("ab"), session=st.sampled_from([None, "s", "t"]))
    def arrive(self, key: str, session: str | None) -> None:
        each = entry(str(self.number), key, session)
        self.number += 1
        self.alive[each.id] = each
        self.model_queue.waiting.push(each, each.share, each.cost, 0.0)

    @rule()
    def begin(self) -> None:
        for each, chosen in self.model_queue.begin(self.replicas, 0.0):
            assert each.replica is chosen
            assert chosen.in_flight <= chosen.slots

    @precondition(lambda self: self.model_queue.running)
    @rule(data=st.data())
    def release_slot(self, data: st.DataObject) -> None:
        each = data.draw(
            st.sampled_from(sorted(self.model_queue.running.values(), key=lambda f: f.id))
        )
        self.model_queue.release_slot(each, 0.0)
        del self.alive[each.id]

    @precondition(lambda self: self.model_queue.depth)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        each = data.draw(st.sampled_from(sorted(self.model_queue.waiters(), key=lambda f: f.id)))
        self.model_queue.forget(each)
        del self.alive[each.id]

    @precondition(lambda self: self.model_queue.running)
    @rule(index=st.integers(0, 1), tried=st.booleans())
    def die(self, index: int, tried: bool) -> None:
        lost = [f for f in self.model_queue.running.values() if f.replica is self.replicas[index]]
        for each in lost:
            self.model_queue.release_slot(each, 0.0)
        if tried:
            self.model_queue.isolate(lost)
        else:
            self.model_queue.retry_queue.extendleft(lost)
        self.replicas[index] = replica(index, 2 + index)

    @rule()
    def end_isolation(self) -> None:
        if self.model_queue.isolated is not None:
            self.model_queue.end_isolation(self.model_queue.isolated)

    @invariant()
    def everybody_is_in_one_place(self) -> None:
        places = [*self.model_queue.waiters(), *self.model_queue.running.values()]
        assert sorted(each.id for each in places) == sorted(self.alive)
        assert self.model_queue.depth == sum(1 for _ in self.model_queue.waiters())
        assert sum(each.in_flight for each in self.replicas) == len(self.model_queue.running)
        assert (
            self.model_queue.isolated is None
            or self.model_queue.isolated.id in self.model_queue.running
        )


TestModelQueueMachine = ModelQueueMachine.TestCase
TestModelQueueMachine.settings = settings(max_examples=60, stateful_step_count=40)
