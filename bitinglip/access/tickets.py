"""A ticket lets a browser, which cannot send a key, watch one task once."""

import hmac
import secrets
import time
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
from sqlmodel import col

from bitinglip.access.credentials import Credential
from bitinglip.access.keys import Caller
from bitinglip.access.scopes import Scope
from bitinglip.db.database import Database
from bitinglip.db.dialects import insert
from bitinglip.db.tables import RevokedToken
from bitinglip.errors import InvalidToken

#: what the home's secret is derived for, to sign tickets that several servers redeem
SIGNATURES = "tickets"
_LONGEST = 2048  #: characters; ours are a quarter of that
_SEAL_BYTES = 32
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

    async def take(self, name: str, task_id: str) -> Caller:
        """Do as ``redeem`` does, also where others have to be asked."""
        return self.redeem(name, task_id)


class SharedTickets(Tickets):
    """Makes tickets that any server of a shared database may redeem, once among them all.

    A ticket says itself whose it is, under a signature; the database holds those that are used.
    """

    def __init__(self, db: Database, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._db = db
        self._secret = secret
        self._clock = clock

    def issue(self, caller: Caller, task_id: str) -> str:
        ends = int(self._clock() + LIFETIME)
        scopes = [str(scope) for scope in caller.scopes]
        body = _encode(_Signed(secrets.token_hex(16), ends, task_id, caller.credential, scopes))
        return urlsafe_b64encode(body + hmac.digest(self._secret, body, "sha256")).decode()

    async def take(self, name: str, task_id: str) -> Caller:
        """Give what is known of the owner: who it is, and its scopes when the ticket was made.

        Raises InvalidToken, DiskFull or DatabaseUnavailable.
        """
        ticket = self._read(name)
        if ticket.task_id != task_id or ticket.ends <= self._clock():
            raise InvalidToken()
        async with self._db.write() as session:
            ends = datetime.fromtimestamp(ticket.ends, UTC)
            used = insert(session, RevokedToken).values(id=ticket.id, expires_at=ends)
            first = used.on_conflict_do_nothing().returning(col(RevokedToken.id))
            if (await session.execute(first)).first() is None:
                raise InvalidToken()
        key_id, generation, token = ticket.credential
        scopes = frozenset(Scope(scope) for scope in ticket.scopes)
        return Caller(key_id, "", "", scopes, generation=generation, token=token)

    def _read(self, name: str) -> "_Signed":
        try:
            whole = b64decode(name, altchars=b"-_", validate=True)
            body, seal = whole[:-_SEAL_BYTES], whole[-_SEAL_BYTES:]
            if len(name) > _LONGEST or not hmac.compare_digest(
                seal, hmac.digest(self._secret, body, "sha256")
            ):
                raise InvalidToken()
            return msgspec.msgpack.decode(body, type=_Signed)
        except (ValueError, msgspec.DecodeError) as error:
            raise InvalidToken() from error


class _Signed(msgspec.Struct, frozen=True, array_like=True):
    id: str
    ends: int  #: Unix time
    task_id: str
    credential: Credential
    scopes: list[str]


_encode = msgspec.msgpack.Encoder().encode
