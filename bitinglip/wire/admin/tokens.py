"""Takes the requests that make and revoke session tokens."""

from typing import Annotated

from pydantic import Field

from bitinglip.access.tokens import LIFETIME
from bitinglip.wire.body import Body


class TokenRequest(Body):
    """Holds the body of ``POST /auth/token``, which may be left out."""

    scopes: Annotated[list[str], Field(min_length=1, max_length=32)] | None = None
    ttl: Annotated[int, Field(ge=1, le=LIFETIME, description="seconds until it ends")] = LIFETIME


class RevokeTokenRequest(Body):
    """Holds the body of ``POST /auth/revoke``: a token, or nothing for the one that is
    presented."""

    token: Annotated[str, Field(min_length=1, max_length=8192)] | None = None
