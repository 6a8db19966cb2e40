"""API keys: the request that makes one, and how the API shows them."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from bitinglip.access.keys import KeyRecord
from bitinglip.wire.body import Body
from bitinglip.wire.errors import timestamp


class CreateKeyRequest(Body):
    """The body of ``POST /keys``."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    tier: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    scopes: Annotated[list[str], Field(min_length=1, max_length=32)] | None = None
    expires: Annotated[str, Field(min_length=1, max_length=64)] | None = None


def key_info(record: KeyRecord) -> dict[str, Any]:
    """Describe a key without its secret."""
    return {
        "id": record.id,
        "name": record.name,
        "tier": record.tier,
        "scopes": [*record.scopes],
        "last_four": record.last_four,
        "created_at": _moment(record.created_at),
        "expires_at": _moment(record.expires_at),
        "revoked_at": _moment(record.revoked_at),
        "last_used_at": _moment(record.last_used_at),
    }


def _moment(value: datetime | None) -> str | None:
    return timestamp(value) if value else None
