"""Session tokens on a real key ring: what they hold, and everything that is no token."""

import asyncio
import base64
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest

from bitinglip.access import tokens as module
from bitinglip.access.credentials import Credential
from bitinglip.access.keys import Caller, KeyRing
from bitinglip.access.scopes import Scope
from bitinglip.access.tokens import LIFETIME, Tokens
from bitinglip.audit.log import AuditLog
from bitinglip.db.database import Database
from bitinglip.errors import (
    DatabaseUnavailable,
    ExpiredApiKey,
    InsufficientScope,
    InvalidToken,
)
from bitinglip.home import Home

HOUR = 3600.0
PEPPER, SECRET = b"p" * 32, b"s" * 32
Act = Callable[[KeyRing, Tokens], Awaitable[None]]


class Clocks:
    """Holds the calendar's clock and the steady one, which no one sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._wall, self._steady = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
        monkeypatch.setattr(time, "time", lambda: self._wall)
        monkeypatch.setattr(time, "clock_gettime", lambda _id: self._steady)

    def set_by(self, seconds: float) -> None:
        self._wall += seconds

    def pass_by(self, seconds: float) -> None:
        self._wall += seconds
        self._steady += seconds


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    return home


def using(home: Home, act: Act) -> None:
    """Run one life of a server: open ring and tokens, act, close."""

    async def run() -> None:
        database = await Database.open(home.database)
        try:
            ring = await KeyRing.open(database, PEPPER, AuditLog(database, PEPPER))
            await act(ring, await Tokens.open(database, ring, SECRET, AuditLog(database, PEPPER)))
        finally:
            await database.close()

    asyncio.run(run())


async def made(ring: KeyRing, **fields: Any) -> Caller:
    _, key = await ring.create(name="a", **fields)
    return ring.authenticate(key)


def refused(tokens: Tokens, text: str) -> None:
    with pytest.raises(InvalidToken) as caught:
        tokens.authenticate(text)
    assert caught.value.message == InvalidToken.__doc__


def test_token_holds_a_part_of_the_scopes_of_its_key(home: Home) -> None:
    async def act(ring: KeyRing, tokens: Tokens) -> None:
        key = await made(ring, scopes=["inference:text", "models:read"], models=["demo"])
        token = tokens.issue(key, ["models:read"], 60)
        caller = tokens.authenticate(token.text)
        assert caller == tokens.authenticate(token.text)  # from what is known of it
        assert (caller.key_id, caller.models, token.expires_in) == (key.key_id, ("demo",), 60)
        assert caller.may(Scope.MODELS_READ)
        assert not caller.may(Scope.TEXT)
        assert set(tokens.issue(key).scopes) == key.scopes
        for scopes in (["admin"], ["models:read", "cluster:write"]):
            with pytest.raises(InsufficientScope):
                tokens.issue(key, scopes)
        with pytest.raises(InsufficientScope):
            tokens.issue(caller)

    using(home, act)


def test_token_of_an_admin_key_may_hold_any_scope(home: Home) -> None:
    async def act(ring: KeyRing, tokens: Tokens) -> None:
        key = await made(ring, scopes=["admin"])
        caller = tokens.authenticate(tokens.issue(key, ["inference:text"]).text)
        assert caller.scopes == {Scope.TEXT}
        await ring.change(key.key_id, scopes=["models:read"])
        assert tokens.authenticate(tokens.issue(key, ["inference:text"]).text).scopes == set()

    using(home, act)


def test_token_ends_with_its_key_its_secret_and_its_time(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(ring: KeyRing, tokens: Tokens) -> None:
        revoked, rotated = await made(ring), await made(ring)
        brief = await made(ring, expires_at=datetime.now(UTC) + timedelta(seconds=30))
        of_revoked, of_rotated = tokens.issue(revoked).text, tokens.issue(rotated).text
        assert tokens.issue(brief).expires_in <= 30
        await ring.revoke(revoked.key_id)
        refused(tokens, of_revoked)
        await ring.rotate(rotated.key_id, timedelta(hours=1), home)
        assert tokens.authenticate(of_rotated).retiring is not None
        await ring.rotate(rotated.key_id, timedelta(0), home)
        refused(tokens, of_rotated)
        other = await made(ring)
        text, now = tokens.issue(other, ttl=60).text, time.time()
        tokens.authenticate(text)
        monkeypatch.setattr("bitinglip.access.tokens.time.time", lambda: now + 61)
        refused(tokens, text)

    using(home, act)


def test_token_that_is_revoked_stays_so(home: Home) -> None:
    texts: list[str] = []

    async def first(ring: KeyRing, tokens: Tokens) -> None:
        key = await made(ring)
        texts.extend(tokens.issue(key).text for _ in range(3))
        await tokens.revoke(texts[0])
        await tokens.revoke(texts[0])
        caller = tokens.authenticate(texts[1])
        await tokens.revoke_own(caller)
        assert not tokens.is_valid(caller.credential)
        assert tokens.is_valid(Credential(caller.key_id, caller.generation, "other"))
        for text in texts[:2]:
            refused(tokens, text)
        for text in ("", "a.b.c", texts[2][:-5]):
            with pytest.raises(InvalidToken):
                await tokens.revoke(text)

    async def second(_ring: KeyRing, tokens: Tokens) -> None:
        for text in texts[:2]:
            refused(tokens, text)
        tokens.authenticate(texts[2])

    using(home, first)
    using(home, second)


def test_revocation_of_a_token_is_forgotten_once_it_has_expired(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = Clocks(monkeypatch)

    async def act(ring: KeyRing, tokens: Tokens) -> None:
        await tokens.revoke(tokens.issue(await made(ring)).text)
        await tokens.forget_expired()
        assert len(tokens._revoked) == 1
        clocks.pass_by(LIFETIME + 60)
        await tokens.forget_expired()
        assert tokens._revoked == {}

    async def empty(_ring: KeyRing, tokens: Tokens) -> None:
        assert tokens._revoked == {}

    using(home, act)
    using(home, empty)


def test_revocation_of_a_token_outlives_a_clock_that_was_ahead_for_a_while(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = Clocks(monkeypatch)

    async def act(ring: KeyRing, tokens: Tokens) -> None:
        text = tokens.issue(await made(ring)).text
        await tokens.revoke(text)
        clocks.set_by(2 * HOUR)
        await tokens.forget_expired()
        clocks.set_by(-2 * HOUR)
        refused(tokens, text)

    using(home, act)


def test_token_of_a_clock_that_was_hours_ahead_is_not_good_for_hours(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused, whether its signature is known or not."""
    clocks = Clocks(monkeypatch)

    async def act(ring: KeyRing, tokens: Tokens) -> None:
        key = await made(ring)
        known, unknown = tokens.issue(key).text, tokens.issue(key).text
        tokens.authenticate(known)
        clocks.set_by(-2 * HOUR)
        for text in (known, unknown):
            refused(tokens, text)
        clocks.set_by(2 * HOUR)
        tokens.authenticate(known)
        clocks.pass_by(LIFETIME)
        refused(tokens, known)

    using(home, act)


def test_secret_in_grace_lives_longer_by_what_its_clock_is_set_back(home: Home) -> None:
    """There is no telling which of the two times was wrong: the calendar's counts, as for keys."""

    async def run() -> None:
        moment = rotated = time.time()
        database = await Database.open(home.database)
        ring = await KeyRing.open(
            database, PEPPER, AuditLog(database, PEPPER), clock=lambda: moment
        )
        record, key = await ring.create(name="a")
        ring.authenticate(key)
        await ring.rotate(record.id, timedelta(seconds=HOUR), home)
        for after, good in ((HOUR - 1, True), (HOUR + 1, False), (HOUR + 1 - 2 * HOUR, True)):
            moment = rotated + after
            with nullcontext() if good else pytest.raises(ExpiredApiKey):
                ring.authenticate(key)
        await database.close()

    asyncio.run(run())


@pytest.mark.sqlite
def test_revocation_of_a_token_holds_although_the_disk_fails(home: Home) -> None:
    async def run() -> None:
        database = await Database.open(home.database)
        ring = await KeyRing.open(database, PEPPER, AuditLog(database, PEPPER))
        tokens = await Tokens.open(database, ring, SECRET, AuditLog(database, PEPPER))
        text = tokens.issue(await made(ring)).text
        async with database.write() as session:
            connection = await session.connection()
            await connection.exec_driver_sql("PRAGMA query_only = ON")
        with pytest.raises(DatabaseUnavailable):
            await tokens.revoke(text)
        refused(tokens, text)
        await database.close()

    asyncio.run(run())


# ---- what is no token ----------------------------------------------------------------------------

_GONE = object()


def _claims(key_id: str, **changed: Any) -> dict[str, Any]:
    now = int(time.time())
    claims: dict[str, Any] = {"iss": "bitinglip", "aud": "bitinglip-api", "sub": key_id}
    claims |= {"jti": "j", "iat": now, "nbf": now, "exp": now + 60, "scope": "models:read"}
    claims |= {"gen": 1, **changed}
    return {name: value for name, value in claims.items() if value is not _GONE}


def signed(
    key_id: str, secret: bytes = SECRET, header: dict[str, Any] | None = None, **changed: Any
) -> str:
    """Sign claims as we do, but do not look at them."""
    header = {"typ": "at+jwt"} if header is None else header
    payload = json.dumps(_claims(key_id, **changed)).encode()
    return jwt.api_jws.encode(payload, secret, algorithm="HS256", headers=header)


def _segment(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


_HUGE = 10**400
_FLOATS = (1.5, float("nan"), float("inf"))
_TIMES: tuple[Any, ...] = (_GONE, None, -1, 0, "9", "x", True, [], {}, _HUGE, *_FLOATS)
_BAD_CLAIMS: list[tuple[str, Any]] = [
    *(("exp", value) for value in (*_TIMES, 2**53)),
    *(("iat", value) for value in _TIMES if value != 0),
    *(("nbf", value) for value in _TIMES if value not in (0, -1)),
    *((name, value) for name in ("iss", "aud", "sub", "jti") for value in (_GONE, None, 1, "", [])),
    ("iss", "BitingLip"),
    ("iss", ["bitinglip"]),
    ("aud", ["bitinglip-api"]),
    ("aud", ["bitinglip-api", "x"]),
    ("sub", "nobody"),
    ("sub", "' OR 1=1 --"),
    *(("scope", value) for value in (_GONE, None, "", "everything", "ADMIN", ["admin"], "admin ")),
    *(("gen", value) for value in (_GONE, None, 0, -1, 2, "1", _HUGE)),
    ("scopes", ["admin"]),
]


def test_token_with_wrong_claims_is_refused(home: Home) -> None:
    async def act(ring: KeyRing, tokens: Tokens) -> None:
        key_id = (await made(ring)).key_id
        tokens.authenticate(signed(key_id))
        for name, value in _BAD_CLAIMS:
            if name == "jti" and value == "":
                continue
            try:
                refused(tokens, signed(key_id, SECRET, None, **{name: value}))
            except BaseException as error:
                raise AssertionError(f"{name}={str(value)[:40]!r}") from error
        now = int(time.time())
        refused(tokens, signed(key_id, iat=now + 60, nbf=now, exp=now + 120))
        refused(tokens, signed(key_id, nbf=now + 60))
        refused(tokens, signed(key_id, exp=now + LIFETIME + 10))  # lives too long
        refused(tokens, signed(key_id, exp=now - 1))

    using(home, act)


def test_token_with_another_header_or_signature_is_refused(home: Home) -> None:
    async def act(ring: KeyRing, tokens: Tokens) -> None:
        key_id = (await made(ring)).key_id
        own, payload = signed(key_id), _segment(_claims(key_id))
        header, _, signature = own.split(".")
        headers: list[dict[str, Any]] = [
            {},
            {"typ": "JWT"},
            {"typ": "at+jwt", "kid": "../../secret.key"},
            {"typ": "at+jwt", "jku": "http://localhost/keys"},
            {"typ": "at+jwt", "x5u": "http://localhost/keys"},
            {"typ": "at+jwt", "jwk": {"kty": "oct", "k": "cw"}},
            {"typ": "at+jwt", "crit": ["x"], "x": 1},
            {"typ": "at+jwt", "b64": False, "crit": ["b64"]},
        ]
        for each in headers:
            refused(tokens, signed(key_id, header=each))
        for alg in ("none", "None", "NONE", "HS512", "RS256", "EdDSA", "", None):
            for end in ("", signature):
                refused(tokens, f"{_segment({'alg': alg, 'typ': 'at+jwt'})}.{payload}.{end}")
        for secret in (b"t" * 32, PEPPER, bytes(32), b"secret" * 6):
            refused(tokens, signed(key_id, secret))
        other = signed(key_id, scope="admin").split(".")
        for text in (
            f"{header}.{other[1]}.{signature}",
            f"{header}.{payload}.",
            f"{header}.{payload}",
            f"{header}..{signature}",
            f"{own}.{signature}",
            f"{own}=",
            f"{own}\n",
            own.replace(".", ".\n", 1),
            f" {own}",
            own.upper(),
            own[:-3],
            own.replace(".", "%2E"),
            f"{header}.{'é' * 10}.{signature}",
            f"{header}.{_segment('[' * 2000)}.{signature}",
            f"{header}.{'A' * 9000}.{signature}",
            ".",
            "..",
            "' OR 1=1 --.",
            "\0.\0.\0",
        ):
            refused(tokens, text)

    using(home, act)


def test_tokens_that_share_their_beginning_are_two(home: Home) -> None:
    async def act(ring: KeyRing, tokens: Tokens) -> None:
        key = await made(ring)
        narrow = tokens.issue(key, ["models:read"]).text
        assert tokens.authenticate(narrow).scopes == {Scope.MODELS_READ}
        forged = narrow[:-4] + ("AAAA" if not narrow.endswith("AAAA") else "BBBB")
        assert forged[:200] == narrow[:200]
        refused(tokens, forged)

    using(home, act)


def test_token_that_is_known_is_one_of_a_bounded_number(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_KNOWN", 3)

    async def act(ring: KeyRing, tokens: Tokens) -> None:
        key = await made(ring)
        texts = [tokens.issue(key).text for _ in range(10)]
        for text in texts * 2:
            tokens.authenticate(text)
            refused(tokens, text[:-3])
        assert len(tokens._known) == 3

    using(home, act)
