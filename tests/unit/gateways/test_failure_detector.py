"""Failure detection: when a server counts as dead."""

from bitinglip.gateways.failure_detector import FailureDetector, Heartbeat

LEASE, GAP = 10.0, 5.0


def test_death_is_told_after_a_whole_lease_without_a_sign_of_life() -> None:
    observed, silent = FailureDetector(LEASE, GAP), {"b": Heartbeat("r", 7)}
    assert [bool(observed.dead(silent, at)) for at in (0, 4, 8, 10, 11)] == [False] * 4 + [True]


def test_death_is_not_told_of_a_server_that_lives_or_has_started_again() -> None:
    observed = FailureDetector(LEASE, GAP)
    for at in range(0, 60, 4):
        assert not observed.dead({"b": Heartbeat("r", at), "c": Heartbeat(f"run {at}", 0)}, at)


def test_death_is_not_told_by_a_server_that_was_away_for_as_long() -> None:
    """The database was away for all, or this one was stopped: the others get a whole lease."""
    observed, silent = FailureDetector(LEASE, GAP), {"b": Heartbeat("r", 7)}
    assert not observed.dead(silent, 0)
    assert not observed.dead(silent, 60)
    assert not observed.dead(silent, 64)
    assert not observed.dead({}, 68)
    assert not observed.dead(silent, 71)


def test_silence_is_counted_from_the_last_new_heartbeat() -> None:
    detector = FailureDetector(LEASE, GAP)
    detector.dead({"b": Heartbeat("r", 7)}, 0)
    detector.dead({"b": Heartbeat("r", 7)}, 3)
    assert (detector.silence("b", 4), detector.silence("another", 4)) == (4, 0)
    detector.dead({"b": Heartbeat("r", 8)}, 5)
    assert detector.silence("b", 5) == 0
