"""Reservations of several agents in one folder; real files and locks, agents that end by closing
their lock, as the kernel does for a process that is killed."""

import os
import tempfile
import zlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from workers.devices.device import Device, Elsewhere
from workers.nodes import node_ledger
from workers.nodes.folder import AgentFolder
from workers.nodes.node_ledger import NodeLedger
from workers.nodes.reservations import FORMAT, LEAST, Entry, Room, Viewer, key_of, keyed
from workers.protocol.bounds import MOST_BYTES

GB = 1_000_000_000
CARD = Device("0", "card", "cuda", 8 * GB, 10 * GB, pin="GPU-1")
HOST = Device("cpu", "processor", "cpu", 12 * GB, 16 * GB)
KEYS = {"0": "GPU-1", "cpu": "n/cpu"}


class Agent:
    """Plays one agent: its folder and its ledger."""

    def __init__(self, parent: Path, gateway: str, node: str = "n") -> None:
        self.now = 100.0
        self.gateway, self.node = gateway, node
        self.folder = AgentFolder(parent)
        self.ledger = NodeLedger(self.folder, lambda: self.now)

    def entry(self, worker: str, size: int, device: str = "0", **fields: object) -> Entry:
        taken = keyed({device: size * GB}, self.node, (CARD, HOST))
        usual: dict[str, object] = {"gateway": self.gateway, "node": self.node, "worker": worker}
        host = f"{self.node}/cpu"
        return Entry(**{**usual, "devices": taken, "host": host, **fields})  # type: ignore[arg-type]  # by name

    def ask(
        self, serial: int, size: int, device: str = "0", used: int = 0, **fields: object
    ) -> str:
        rooms = [
            Room(each, key_of(self.node, each), used * GB, 1 * GB if each is CARD else 0)
            for each in (CARD, HOST)
        ]
        wanted = self.entry(f"w{serial}", size, device, **fields)
        return self.ledger.reserve(serial, wanted, rooms) or ""

    def sees(self, device: str = "0") -> Elsewhere | None:
        self.ledger.look()
        return self.ledger.elsewhere(Viewer(self.gateway, self.node), KEYS).get(device)

    @property
    def page(self) -> Path:
        return self.folder.root / "ledger"

    def wish(self, size: int) -> None:
        """Wish for memory of the card, as far as it has been seen now."""
        had = {"GPU-1": (self.sees() or Elsewhere()).reserved}
        viewer = Viewer(self.gateway, self.node)
        self.ledger.wish(viewer, {"GPU-1": size * GB}, had)

    def leave(self) -> tuple[str, ...]:
        return (self.sees() or Elsewhere()).leave

    def die(self) -> None:
        """End as by kill -9: the folder stays, its lock is free."""
        os.close(self.folder._lock)


def test_ledger_grants_one_of_two_that_are_too_large_together(tmp_path: Path) -> None:
    a, b = Agent(tmp_path, "a"), Agent(tmp_path, "b")
    assert a.ask(1, 5) == ""
    assert "3.0 GB left and 5.0 GB are needed" in b.ask(1, 5)
    assert b.ask(2, 3) == ""
    assert b.sees() == Elsewhere(reserved=5 * GB, unknown=True)
    a.ledger.release(1)
    assert b.sees() is None
    assert b.ask(3, 5) == ""


def test_ledger_counts_other_programs_and_no_process_of_a_gateway_twice(tmp_path: Path) -> None:
    a, b = Agent(tmp_path, "a"), Agent(tmp_path, "b")
    assert a.ask(1, 4) == ""
    assert b.ask(1, 4, used=4) == "", "what the other's process may hold is in its reservation"
    b.ledger.release(1)
    assert "left" in b.ask(2, 4, used=7), "the rest is another program's"
    a.ledger.update("a", {"w1": a.entry("w1", 4, held={"GPU-1": 3 * GB})})
    assert "left" in b.ask(3, 4, used=6)
    assert b.ask(4, 4, used=4) == ""
    assert b.sees() == Elsewhere(reserved=4 * GB, held=3 * GB)


def test_ledger_takes_what_a_process_has_grown_to_and_grants_nothing_beside_it(
    tmp_path: Path,
) -> None:
    a, b = Agent(tmp_path, "a"), Agent(tmp_path, "b")
    assert a.ask(1, 4) == ""
    a.ledger.update("a", {"w1": a.entry("w1", 9)})
    assert "0.0 GB left" in b.ask(1, 1)


def test_ledger_counts_ram_of_models_on_cards_and_on_the_processor_together(tmp_path: Path) -> None:
    a, b = Agent(tmp_path, "a"), Agent(tmp_path, "b")
    assert a.ask(1, 1, ram=6 * GB) == ""
    assert "cpu has 10.0 GB left" in b.ask(1, 11, device="cpu")
    assert b.ask(2, 9, device="cpu") == ""
    assert a.sees("cpu") == Elsewhere(reserved=9 * GB, ram=9 * GB, unknown=True)
    assert b.sees("cpu") == Elsewhere(reserved=0, ram=6 * GB, unknown=True)


def test_ledger_shares_cards_between_nodes_and_keeps_other_devices_apart(tmp_path: Path) -> None:
    a, b = Agent(tmp_path, "a"), Agent(tmp_path, "b", node="m")
    assert a.ask(1, 5) == ""
    assert a.ask(2, 12, device="cpu") == ""
    assert b.ask(1, 12, device="cpu") == ""
    assert "GB left" in b.ask(2, 5)


def test_ledger_tells_no_more_than_a_message_may_say(tmp_path: Path) -> None:
    """Two entries of impossible sizes, which another gateway tells unasked, harm no one."""
    one, two = Agent(tmp_path, "one"), Agent(tmp_path, "two")
    assert (one.ask(1, 1), one.ask(2, 1)) == ("", "")
    told = {
        f"w{n}": one.entry(f"w{n}", 1, devices={"GPU-1": MOST_BYTES}, held={"GPU-1": MOST_BYTES})
        for n in (1, 2)
    }
    one.ledger.update("one", told)
    there = two.sees()
    assert there is not None
    assert (there.reserved, there.held) == (MOST_BYTES, MOST_BYTES)
    unified = Device("0", "card", "cuda", 8 * GB, 10 * GB, unified=True)
    taken = keyed({"0": MOST_BYTES, "cpu": MOST_BYTES}, "n", (unified, HOST))
    assert set(taken.values()) == {MOST_BYTES}


def test_ledger_drops_wishes_of_gateways_that_have_gone(tmp_path: Path) -> None:
    agent = Agent(tmp_path, "one")
    for number in range(3):
        agent.ledger.wish(Viewer(f"gateway {number}", "n"), {"GPU-1": GB}, {})
        agent.now += 6
    assert agent.page.read_bytes().count(b'"gateway":') == 1


def test_ledger_forgets_an_agent_that_was_killed(tmp_path: Path) -> None:
    a, b = Agent(tmp_path, "a"), Agent(tmp_path, "b")
    assert a.ask(1, 6) == ""
    a.die()
    assert b.sees() is None
    assert b.ask(1, 6) == ""
    c = Agent(tmp_path, "c")
    assert not a.folder.root.exists(), "the next agent removes what it left"
    assert "GB left" in c.ask(1, 6)


@pytest.mark.parametrize("damage", [b"", b"0", b"00000000 {}", b'{"entries":[]}', b"x" * (1 << 23)])
def test_ledger_grants_nothing_beside_a_damaged_page_until_its_agent_has_written_it_anew(
    tmp_path: Path, damage: bytes
) -> None:
    a, b = Agent(tmp_path, "a"), Agent(tmp_path, "b")
    assert a.ask(1, 5) == ""
    assert b.sees() == Elsewhere(reserved=5 * GB, unknown=True)
    a.page.write_bytes(damage)
    assert "cannot be read" in b.ask(1, 1)
    assert b.sees() == Elsewhere(reserved=5 * GB, unknown=True), "the last look stands"
    a.ledger.look()
    assert "3.0 GB left" in b.ask(1, 5)
    assert b.ask(1, 3) == ""
    a.page.unlink()
    a.ledger.look()
    assert "GB left" in b.ask(2, 3), "a page that was removed comes back, too"


def test_ledger_damaged_by_an_agent_that_is_gone_is_no_matter(tmp_path: Path) -> None:
    a, b = Agent(tmp_path, "a"), Agent(tmp_path, "b")
    a.page.write_bytes(b"half a pa")
    a.die()
    assert b.ask(1, 8) == ""


def test_ledger_grants_although_an_agent_stands_still_with_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(node_ledger, "_LOCK_SECONDS", 0.02)
    a, b = Agent(tmp_path, "a"), Agent(tmp_path, "b")
    held = b.ledger._turn()
    with held:
        assert a.ask(1, 5) == ""
        assert "3.0 GB left" in a.ask(2, 5)
    (told,) = [each.message for each in caplog.records]
    assert f"process {os.getpid()}, {b.folder.root}" in told
    assert b.sees() == Elsewhere(reserved=5 * GB, unknown=True)


@pytest.mark.parametrize("stopped_at", ["_write", "_read_others"])
def test_ledger_grants_nothing_twice_where_an_agent_stands_still_amid_a_grant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: str
) -> None:
    """The one that goes on, with what it has read before, has written what it asks for."""
    monkeypatch.setattr(node_ledger, "_LOCK_SECONDS", 0.02)
    a, b = Agent(tmp_path, "a"), Agent(tmp_path, "b")
    real = getattr(a.ledger, stopped_at)
    said: list[str] = []

    def stands_still(*_: object) -> object:
        found = real()
        if not said:
            said.append(b.ask(1, 5))
            assert (b.sees() or Elsewhere()).reserved == 0, "what is only asked for is none's"
        return found

    monkeypatch.setattr(a.ledger, stopped_at, stands_still)
    assert a.ask(1, 5) == ""
    assert "GB left" in said[0]
    assert (b.sees() or Elsewhere()).reserved == 5 * GB


def page_of(agent: Agent, **changes: object) -> bytes:
    """Return an agent's page as one that another version has written."""
    _, _, body = agent.page.read_bytes().partition(b" ")
    body = msgspec.json.encode(msgspec.json.decode(body) | changes)
    return b"%08x %s" % (zlib.crc32(body), body)


def test_ledger_reads_pages_of_other_versions_or_refuses_them_by_name(tmp_path: Path) -> None:
    a, b = Agent(tmp_path, "a"), Agent(tmp_path, "b")
    assert a.ask(1, 5) == ""
    future = {"gateway": "a", "node": "n", "worker": "w", "host": "n/cpu", "in_slices": [1]}
    entries = [{**future, "devices": {"GPU-1": 6 * GB}}]
    a.page.write_bytes(page_of(a, format=9, least=2, slices={}, entries=entries))
    assert "2.0 GB left" in b.ask(1, 3), "what is not known of it is ignored"
    assert b.ask(2, 2) == ""
    a.page.write_bytes(page_of(a, format=9, least=9, entries={"by": "another order"}))
    why = b.ask(3, 1)
    assert "of a later version of BitingLip" in why
    assert "restart this gateway" in why
    assert "cannot be read; it writes that anew" not in why


def test_ledger_reads_the_page_of_each_format_that_there_was(tmp_path: Path) -> None:
    """The one of format 1 is as it was written; a format that is new gets a line here."""
    a, b = Agent(tmp_path, "a"), Agent(tmp_path, "b")
    one = (
        b'{"entries":[{"gateway":"g","node":"n","worker":"w/0","devices":{"GPU-1":6000000000},'
        b'"host":"n/cpu","ram":0,"held":{},"idle_since":12.5,"pinned":false}],'
        b'"wishes":[{"gateway":"g","node":"n","devices":{"GPU-1":1},"at":99.0}]}'
    )
    a.page.write_bytes(b"%08x %s" % (zlib.crc32(one), one))
    assert b.sees() == Elsewhere(reserved=6 * GB, idle=6 * GB, unknown=True)
    assert (FORMAT, LEAST) == (2, 1)


def test_ledger_that_cannot_be_written_grants_nothing_and_is_written_later(tmp_path: Path) -> None:
    a, b = Agent(tmp_path, "a"), Agent(tmp_path, "b")
    part = a.page.with_suffix(".part")
    part.mkdir()  # stands for a full disk: the page cannot be written
    with pytest.raises(OSError, match="directory"):
        a.ask(1, 6)
    assert b.ask(1, 6) == ""
    part.rmdir()
    assert a.ask(2, 2) == ""
    part.mkdir()
    a.ledger.release(2)
    assert b.sees() is not None, "what is written stands until it can be changed"
    part.rmdir()
    a.ledger.look()
    assert b.sees() is None


def test_wish_takes_the_models_that_are_idle_for_longest_whosever_they_are(tmp_path: Path) -> None:
    a, b, c = (Agent(tmp_path, each) for each in "abc")
    assert a.ask(1, 2, idle_since=50.0) == ""
    assert a.ask(2, 2, idle_since=20.0) == ""
    assert b.ask(1, 2, idle_since=30.0) == ""
    assert b.ask(2, 2) == "", "in use"
    c.wish(7)
    assert [each.leave() for each in (a, b)] == [(), ()], "it is in vain"
    c.wish(3)
    assert [each.leave() for each in (a, b)] == [("w2",), ("w1",)]
    assert (c.sees() or Elsewhere()).idle == 6 * GB, "with what leaves"
    c.wish(1)
    assert [each.leave() for each in (a, b)] == [("w2",), ("w1",)], "what leaves is enough"


def test_wish_that_is_not_repeated_ends(tmp_path: Path) -> None:
    a, c = Agent(tmp_path, "a"), Agent(tmp_path, "c")
    assert a.ask(1, 2, idle_since=50.0) == ""
    c.wish(1)
    a.now += 4
    a.ledger.update("a", {"w1": a.entry("w1", 2, idle_since=50.0)})
    a.now += 2
    assert a.leave() == ()


def test_wish_counts_what_leaves_and_what_has_been_freed_since_it_was_made(tmp_path: Path) -> None:
    a, b, c = (Agent(tmp_path, each) for each in "abc")
    assert a.ask(1, 4, idle_since=20.0) == ""
    assert b.ask(1, 4, idle_since=30.0) == ""
    c.wish(4)
    assert (a.leave(), b.leave()) == (("w1",), ())
    a.ledger.update("a", {"w1": a.entry("w1", 4, leaving_since=a.now)})
    assert b.leave() == ()
    a.ledger.release(1)
    assert b.leave() == (), "the wish has not heard of it yet"
    c.wish(4)
    assert b.leave() == ("w1",), "it has, and needs as much again"


def test_wish_goes_past_models_whose_gateway_says_nothing_or_does_not_let_them_go(
    tmp_path: Path,
) -> None:
    a, b, c = (Agent(tmp_path, each) for each in "abc")
    assert a.ask(1, 4, idle_since=20.0) == ""
    assert b.ask(1, 4, idle_since=30.0) == ""
    c.wish(4)
    assert (a.leave(), b.leave()) == (("w1",), ())
    a.ledger.update("a", {"w1": a.entry("w1", 4)})  # it has work again
    assert (a.leave(), b.leave()) == ((), ("w1",))
    b.now += 6  # its gateway stands still
    a.now += 6
    a.ledger.update("a", {"w1": a.entry("w1", 4, idle_since=a.now)})
    c.now += 6
    c.wish(4)
    assert b.leave() == ()
    assert a.leave() == ("w1",)
    a.now += 40
    c.now += 40
    a.ledger.update("a", {"w1": a.entry("w1", 4, leaving_since=a.now)})
    assert (c.sees() or Elsewhere()).idle == 0, "it does not end"


class Ledgers(RuleBasedStateMachine):
    """Any order of reservations, releases and deaths of three agents."""

    def __init__(self) -> None:
        super().__init__()
        self._parent = tempfile.TemporaryDirectory(prefix="ledgers")
        self._agents = [self._new(number) for number in range(3)]
        self._held: list[dict[int, int]] = [{}, {}, {}]
        self._serial = 0

    def _new(self, number: int) -> Agent:
        return Agent(Path(self._parent.name), f"g{number}")

    @rule(number=st.integers(0, 2), size=st.integers(1, 9))
    def reserve(self, number: int, size: int) -> None:
        self._serial += 1
        taken = sum(sum(each.values()) for each in self._held)
        why = self._agents[number].ask(self._serial, size)
        assert (why == "") == (taken + size <= 8)
        if not why:
            self._held[number][self._serial] = size

    @precondition(lambda self: any(self._held))
    @rule(number=st.integers(0, 2), which=st.integers(0, 9))
    def release(self, number: int, which: int) -> None:
        if held := self._held[number]:
            serial = list(held)[which % len(held)]
            self._agents[number].ledger.release(serial)
            del held[serial]

    @rule(number=st.integers(0, 2))
    def die(self, number: int) -> None:
        self._agents[number].die()
        self._agents[number] = self._new(number)
        self._held[number] = {}

    @rule(number=st.integers(0, 2), data=st.binary(max_size=40))
    def damage(self, number: int, data: bytes) -> None:
        self._agents[number].page.write_bytes(data)
        self._agents[number].ledger.look()

    @invariant()
    def each_sees_what_the_others_hold(self) -> None:
        for number, agent in enumerate(self._agents):
            theirs = sum(sum(h.values()) for n, h in enumerate(self._held) if n != number)
            assert (agent.sees() or Elsewhere()).reserved == theirs * GB

    def teardown(self) -> None:
        for agent in self._agents:
            agent.die()
        self._parent.cleanup()


TestLedgers = Ledgers.TestCase
TestLedgers.settings = settings(max_examples=12, stateful_step_count=20, deadline=None)
