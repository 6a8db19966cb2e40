"""A session token is a short-lived JWT (RFC 8725) that stands for a key, with a part of its scopes.

It ends by itself, with the secret that made it, and when it is revoked. There is one algorithm and
one header; a token with any other header is refused before it is parsed.
"""

import hashlib
import re
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple, Self

import jwt
import msgspec
from sqlmodel import col, delete, select

from bitinglip.access.credentials import Credential
from bitinglip.access.keys import Caller, KeyRing
from bitinglip.access.scopes import Scope, parse_scopes
from bitinglip.audit.entry import SERVER, Action, Actor, Entry
from bitinglip.audit.log import AuditLog
from bitinglip.db.database import Database
from bitinglip.db.retention import Retention
from bitinglip.db.tables import RevokedToken
from bitinglip.errors import InsufficientScope, InvalidRequest, InvalidToken
from bitinglip.gateways.changes import TOKENS, count_change

#: what the home's secret is derived for, to make the secret of the signatures
SIGNING = "session tokens"
LIFETIME = 900  #: seconds, by default and at most
CLEAN_SECONDS = 300.0  #: between two removals of revocations that nothing needs any more

_LONGEST = 4096  #: characters; ours are a tenth of that
_LEEWAY = 5  #: seconds, for a clock that was set back
_ALGORITHM = "HS256"
_TYPE = {"typ": "at+jwt"}
_ISSUER = "bitinglip"
_AUDIENCE = "bitinglip-api"
_CHECKS: Any = {
    "require": ["exp", "iat", "nbf", "iss", "aud", "sub", "jti"],
    "strict_aud": True,
    "enforce_minimum_key_length": True,
}
_HEADER = jwt.encode({}, bytes(32), algorithm=_ALGORITHM, headers=_TYPE).partition(".")[0] + "."
#: without this, a decoder drops what is not of the alphabet, and one token has many texts
_FORM = re.compile(r"[0-9A-Za-z_-]+\.[0-9A-Za-z_-]+\.[0-9A-Za-z_-]{43}", re.ASCII)
_FAULTS = (jwt.PyJWTError, msgspec.ValidationError, InvalidRequest, ValueError, RecursionError)
_MOST_KNOWN = 1024  #: tokens whose signature is not checked again


class Claims(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Holds the claims of a token; times are in Unix seconds."""

    iss: str
    aud: str
    sub: str  #: the key's id
    jti: str
    iat: int
    nbf: int
    exp: int
    scope: str
    gen: int  #: which of the key's secrets it was made with


class NewToken(NamedTuple):
    """Holds a token that was just made; its text exists here and is never stored."""

    id: str
    text: str
    expires_in: int
    scopes: list[Scope]


def is_token(credential: str) -> bool:
    """Return whether a credential has the form of a token; keys hold no dots."""
    return "." in credential


class Tokens:
    """Makes, checks and revokes tokens. Only revocations are stored, with their audit entries."""

    def __init__(
        self,
        db: Database,
        keys: KeyRing,
        secret: bytes,
        audit: AuditLog,
        *,
        notify: Callable[[], None] = lambda: None,
    ) -> None:
        """``notify`` tells other servers that tokens were revoked."""
        self._db = db
        self._audit = audit
        self._keys = keys
        self._secret = secret
        self._notify = notify
        self._revoked: dict[str, int] = {}  #: Unix time of the expiry by id
        self._known: dict[bytes, Claims] = {}  #: by the digest of the whole token
        self._retention = Retention(LIFETIME + 2 * _LEEWAY)

    @classmethod
    async def open(
        cls, db: Database, keys: KeyRing, secret: bytes, audit: AuditLog, **options: Any
    ) -> Self:
        """Read which tokens were revoked. Raises DatabaseUnavailable.

        ``options``: those of the constructor.
        """
        tokens = cls(db, keys, secret, audit, **options)
        await tokens.reload()
        return tokens

    async def reload(self) -> None:
        """Read what other servers have revoked, too. Raises DatabaseUnavailable."""
        async with self._db.read() as session:
            rows = await session.scalars(select(RevokedToken))
            self._revoked |= {row.id: int(row.expires_at.timestamp()) for row in rows}

    def issue(
        self, caller: Caller, scopes: Iterable[str] | None = None, ttl: int = LIFETIME
    ) -> NewToken:
        """Make a token for ``ttl`` seconds; it ends sooner if the caller's key does.

        Raises InsufficientScope for a token's bearer, or for a scope that the key does not have.
        """
        if caller.token:
            raise InsufficientScope("Tokens are made with a key, not with a token.")
        asked = caller.scopes if scopes is None else parse_scopes(scopes)
        if missing := [scope for scope in Scope if scope in asked and not caller.may(scope)]:
            raise InsufficientScope(
                f"The key does not have the scope {missing[0]}.",
                param="scopes",
                details={"required": missing},
            )
        now = int(time.time())
        ends = [now + ttl]
        if caller.expires_at is not None:
            ends.append(int(caller.expires_at.timestamp()))
        if caller.retiring is not None:
            ends.append(int(caller.retiring.until.timestamp()))
        names = [scope for scope in Scope if scope in asked]
        claims = Claims(
            iss=_ISSUER,
            aud=_AUDIENCE,
            sub=caller.key_id,
            jti=secrets.token_hex(16),
            iat=now,
            nbf=now,
            exp=min(ends),
            scope=" ".join(names),
            gen=caller.generation,
        )
        text = jwt.encode(
            msgspec.to_builtins(claims), self._secret, algorithm=_ALGORITHM, headers=_TYPE
        )
        return NewToken(claims.jti, text, max(0, claims.exp - now), names)

    def authenticate(self, text: str) -> Caller:
        """Return the bearer of a token, with what their key may do now. Raises InvalidToken."""
        claims = self._claims(text)
        caller = self._keys.caller(Credential(claims.sub, claims.gen))
        if caller is None or claims.jti in self._revoked:
            raise InvalidToken()
        scopes = frozenset(Scope(name) for name in claims.scope.split(" "))
        held = frozenset(scope for scope in scopes if caller.may(scope))
        return replace(caller, scopes=held, token=claims.jti)

    def is_valid(self, credential: Credential) -> bool:
        """Return False once a key, its secret, or a token was ended.

        A token that only expired ends no work that it began.
        """
        return credential.token not in self._revoked and self._keys.is_valid(credential)

    def grants(self, credential: Credential, scope: Scope, model: str) -> bool:
        """Return whether work may go on that needs this scope and model; else its key lost them.

        A token's own scopes cannot shrink.
        """
        return self.is_valid(credential) and self._keys.grants(credential.key_id, scope, model)

    async def revoke(self, text: str, *, by: Actor = SERVER) -> None:
        """End a token. It is refused at once, even if the database cannot be written.

        Raises InvalidToken for what is no token of this server, or one that has expired.
        """
        claims = self._claims(text)
        self._revoked[claims.jti] = claims.exp
        await self._store(claims.jti, claims.exp, by)

    async def revoke_own(self, caller: Caller, *, by: Actor = SERVER) -> None:
        """End the token that this caller came with, as ``revoke`` does."""
        ends = int(time.time()) + LIFETIME + _LEEWAY
        self._revoked.setdefault(caller.token, ends)
        await self._store(caller.token, ends, by)

    async def forget_expired(self) -> None:
        """Remove the revocations of tokens that have expired. Raises DatabaseUnavailable.

        Used tickets that several servers share are stored beside them, and are in no memory. A
        clock that jumps ahead expires none, as it may be set back.
        """
        oldest = int(self._retention.now()) - 2 * _LEEWAY
        expired = [token for token, ends in self._revoked.items() if ends < oldest]
        old = col(RevokedToken.expires_at) < datetime.fromtimestamp(oldest, UTC)
        async with self._db.read() as session:
            stored = (
                await session.scalars(select(col(RevokedToken.id)).where(old).limit(1))
            ).first()
        if stored is not None:
            async with self._db.write() as session:
                await session.execute(delete(RevokedToken).where(old))
        for token in expired:
            del self._revoked[token]

    async def _store(self, token: str, ends: int, by: Actor) -> None:
        entry = Entry(Action.TOKEN_REVOKE, by, token)
        async with self._db.write() as session:
            moment = datetime.fromtimestamp(ends, UTC)
            await session.merge(RevokedToken(id=token, expires_at=moment))
            await count_change(session, TOKENS)
            if self._audit.often.takes(entry):
                await self._audit.append(session, entry)
        self._notify()

    def _claims(self, text: str) -> Claims:
        """Return what a valid token says; it may have been revoked. Raises InvalidToken."""
        if len(text) > _LONGEST or not text.startswith(_HEADER) or not _FORM.fullmatch(text):
            raise InvalidToken()
        digest = hashlib.sha256(text.encode()).digest()
        claims = self._known.get(digest)
        if claims is None:
            claims = self._checked(text)
            if len(self._known) >= _MOST_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[digest] = claims
        # Also of one that is known: it was made under a clock that has been set back since.
        if not claims.nbf - _LEEWAY <= time.time() < claims.exp:
            raise InvalidToken()
        return claims

    def _checked(self, text: str) -> Claims:
        try:
            found = jwt.decode(
                text,
                self._secret,
                algorithms=[_ALGORITHM],
                audience=_AUDIENCE,
                issuer=_ISSUER,
                leeway=_LEEWAY,
                options=_CHECKS,
            )
            claims = msgspec.convert(found, Claims)
            scopes = parse_scopes(claims.scope.split(" "))
        except _FAULTS as error:
            raise InvalidToken() from error
        if (
            not scopes
            or claims.gen < 1
            or not 0 <= claims.iat <= claims.exp <= claims.iat + LIFETIME
        ):
            raise InvalidToken()
        return claims
