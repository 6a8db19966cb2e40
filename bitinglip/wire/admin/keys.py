"""Takes requests that make and change API keys, and shows keys."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from bitinglip.access.expiry import parse_expiry
from bitinglip.access.keys import KeyRecord
from bitinglip.access.narrowing import MOST
from bitinglip.access.usage.quotas import MOST as MOST_AMOUNT
from bitinglip.access.usage.quotas import described
from bitinglip.wire.body import Body
from bitinglip.wire.errors import timestamp

_Name = Annotated[str, Field(min_length=1, max_length=128)]
_Tier = Annotated[str, Field(min_length=1, max_length=64)]
_Scopes = Annotated[list[str], Field(min_length=1, max_length=32)]
_Expires = Annotated[str, Field(min_length=1, max_length=64)]
_Globs = Annotated[list[str], Field(min_length=1, max_length=MOST)]
_Ranges = Annotated[list[str], Field(min_length=1, max_length=MOST)]
_Guard = Literal["report", "redact", "block"]

_Amount = Annotated[float, Field(ge=0, le=MOST_AMOUNT)] | None
_Whole = Annotated[int, Field(ge=0, le=MOST_AMOUNT)] | None


class QuotaAmounts(Body):
    """Bounds what a key may use in a day or in a month; null narrows nothing."""

    requests: _Whole = None
    tokens: _Whole = None
    megapixels: _Amount = None
    audio_seconds: _Amount = None
    gpu_seconds: _Amount = None


class KeyQuotas(QuotaAmounts):
    """Holds a key's own quotas, beside those of its tier; amounts outside of a
    period are a day's."""

    daily: QuotaAmounts | None = None
    monthly: QuotaAmounts | None = None


class CreateKeyRequest(Body):
    """Holds the body of ``POST /keys``."""

    name: _Name
    tier: _Tier | None = None
    scopes: _Scopes | None = None
    expires: _Expires | None = None
    models: _Globs | None = None
    ip_ranges: _Ranges | None = None
    quotas: KeyQuotas | None = None
    guard: _Guard | None = None


class ChangeKeyRequest(Body):
    """Holds the body of ``PATCH /keys/{id}``: null lifts an expiry or a narrowing."""

    name: _Name = ""
    tier: _Tier = ""
    scopes: _Scopes = Field(default=[])
    expires: _Expires | None = None
    models: _Globs | None = None
    ip_ranges: _Ranges | None = None
    quotas: KeyQuotas | None = None
    guard: _Guard | None = None

    def changes(self) -> dict[str, Any]:
        """Return the fields that were sent, as the key ring names them. Raises InvalidRequest."""
        sent = {name: getattr(self, name) for name in self.model_fields_set}
        if "expires" in sent:
            expires = sent.pop("expires")
            sent["expires_at"] = expires and parse_expiry(expires)
        if self.quotas is not None:
            sent["quotas"] = self.quotas.model_dump()
        return sent


class RotateKeyRequest(Body):
    """Holds the body of ``POST /keys/{id}/rotate``, which may be left out."""

    grace: Annotated[str, Field(min_length=1, max_length=64)] = "24h"


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
        "models": record.models,
        "ip_ranges": record.ip_ranges,
        "quotas": described(record.quotas),
        "guard": record.guard,
        "rotated_at": _moment(record.rotated_at),
        "grace_until": _moment(record.grace_until),
        "rotate_by": _moment(record.rotate_by),
    }


def _moment(value: datetime | None) -> str | None:
    return timestamp(value) if value else None
