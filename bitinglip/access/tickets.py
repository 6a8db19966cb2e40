"""A ticket lets a browser, which cannot send a key, watch one task once."""

import secrets
import time
from dataclasses import dataclass

from bitinglip.access.keys import Caller
from bitinglip.errors import InvalidToken

LIFETIME = 60.0  #: seconds
_MOST_OF_A_KEY = 100  #: open at once; the oldest gives way


@dataclass(frozen=True, slots=True)
class _Ticket:
    caller: Caller
    task_id: str
    ends: float


class Tickets:
    """Holds tickets in memory; a restart ends them all."""

    def __init__(self) -> None:
        self._open: dict[str, _Ticket] = {}

    def issue(self, caller: Caller, task_id: str) -> str:
        """Make a ticket with which this caller may watch this task."""
        now = time.monotonic()
        self._open = {name: ticket for name, ticket in self._open.items() if ticket.ends > now}
        own = [name for name, each in self._open.items() if each.caller.key_id == caller.key_id]
        if len(own) >= _MOST_OF_A_KEY:
            del self._open[own[0]]
        name = secrets.token_urlsafe(32)
        self._open[name] = _Ticket(caller, task_id, now + LIFETIME)
        return name

    def redeem(self, name: str, task_id: str) -> Caller:
        """Give the owner of a ticket, which is used up whatever the answer. Raises InvalidToken."""
        ticket = self._open.pop(name, None)
        if ticket is None or ticket.task_id != task_id or ticket.ends <= time.monotonic():
            raise InvalidToken()
        return ticket.caller
