"""Tickets: once, for one task, for a minute, and never without bound."""

import time

import pytest

from bitinglip.access.keys import Caller
from bitinglip.access.scopes import Scope
from bitinglip.access.tickets import LIFETIME, Tickets
from bitinglip.errors import InvalidToken

ANNA = Caller("a", "anna", "free", frozenset({Scope.TEXT}))
BERT = Caller("b", "bert", "free", frozenset({Scope.TEXT}))


def good(office: Tickets, ticket: str, task_id: str = "t") -> bool:
    try:
        office.redeem(ticket, task_id)
    except InvalidToken:
        return False
    return True


def test_ticket_names_its_caller_once() -> None:
    office = Tickets()
    ticket = office.issue(ANNA, "t")
    assert office.redeem(ticket, "t") is ANNA
    assert not good(office, ticket)
    assert not good(office, "")


def test_ticket_shown_for_another_task_is_used_up() -> None:
    office = Tickets()
    ticket = office.issue(ANNA, "t")
    assert not good(office, ticket, "other")
    assert not good(office, ticket)


@pytest.mark.parametrize(("seconds", "valid"), [(LIFETIME - 1, True), (LIFETIME, False)])
def test_ticket_expires(monkeypatch: pytest.MonkeyPatch, seconds: float, valid: bool) -> None:
    office = Tickets()
    ticket = office.issue(ANNA, "t")
    later = time.monotonic() + seconds
    monkeypatch.setattr("time.monotonic", lambda: later)
    assert good(office, ticket) is valid


def test_tickets_of_a_key_are_a_hundred_at_most_and_push_no_others_out() -> None:
    office = Tickets()
    berts = office.issue(BERT, "t")
    annas = [office.issue(ANNA, "t") for _ in range(150)]
    assert len(set(annas)) == 150
    assert [good(office, ticket) for ticket in annas] == [False] * 50 + [True] * 100
    assert good(office, berts)
