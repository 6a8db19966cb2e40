"""Declares the settings of Redis or Valkey, by which gateways share limits, quotas and answers."""

import re
from typing import Annotated, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from bitinglip.settings.sections import Section, span_in_seconds

_SCHEMES = ("redis", "rediss", "unix")
#: of what is not followed: beginnings of their URLs, as other clients have them
_NOT_FOLLOWED = re.compile(r"[a-z+]*(sentinel|cluster|srv)[a-z+]*:", re.IGNORECASE)
#: what a URL may say after its question mark; all else has a setting, or is ours to decide
_QUERY = frozenset({"db", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})
#: to the last @: of a password that is not escaped, too, nothing is shown
_PASSWORD = re.compile(r"(//[^:@/?]*):.*@", re.DOTALL)


def _is_redis(url: str) -> str:
    """Refuse what is no URL of Redis; never quote it, for it may hold a password."""
    try:
        parts = urlsplit(url)
        number, host = parts.path.lstrip("/"), parts.hostname
        parts.port  # noqa: B018  raises for what is none
    except ValueError:
        parts, number, host = urlsplit(""), "", None
    if _NOT_FOLLOWED.match(url) or "," in url.partition("?")[0].rpartition("@")[2]:
        raise ValueError(
            "names one server: Sentinel and Cluster are not followed; name the primary, or a proxy "
            "or service that has one address for it, as redis://host:6379/0"
        )
    named = bool(parts.path) if parts.scheme == "unix" else bool(host)
    if parts.scheme not in _SCHEMES or not named:
        raise ValueError(
            "must be a URL such as redis://host:6379/0, rediss://host:6379/0 (TLS) or "
            "unix:///run/redis/redis.sock; null shares nothing with other gateways"
        )
    rest = parts.query + parts.fragment + ("" if parts.scheme == "unix" else parts.path)
    if parts.netloc.count("@") > 1 or "@" in rest:
        raise ValueError(
            "has an @ too many: in names and passwords write %40 for @, %2F for / and %3F for ?"
        )
    if parts.scheme != "unix" and number and not number.isdecimal():
        raise ValueError("ends with the number of the database, as in redis://host:6379/0")
    if unknown := [name for name, _ in parse_qsl(parts.query) if name not in _QUERY]:
        known = ", ".join(sorted(_QUERY))
        raise ValueError(f"has the option {unknown[0][:40]!r}; known here are {known}")
    if parts.scheme != "rediss" and "ssl_" in parts.query:
        raise ValueError("names files of TLS, which rediss:// speaks and the others do not")
    return url


def without_password(url: str) -> str:
    """Return the URL as messages and ``config show`` may have it."""
    return _PASSWORD.sub(r"\1:***@", url)


class Redis(Section):
    url: (
        Annotated[
            str,
            AfterValidator(_is_redis),
            PlainSerializer(without_password, when_used="json"),
        ]
        | None
    ) = Field(
        None,
        description="Redis or Valkey through which several gateways share limits, quotas and "
        "revocations, as redis://host:6379/0 (needs bitinglip[redis]); null: this server is alone",
    )
    password_file: str | None = Field(
        None,
        description="file that holds the password of redis.url, so that the URL need not; null "
        "uses what the URL says",
    )
    when_away: Literal["refuse", "local"] = Field(
        "local",
        description="what happens to limited requests while Redis does not answer: refuse (503), "
        "or local (each gateway applies the limits by itself, to its own requests)",
    )
    timeout_ms: Annotated[int, Field(ge=10, le=5000)] = Field(
        100,
        description="maximum milliseconds that a request waits for Redis; then Redis counts as "
        "away, and no request waits for it until it answers again",
    )
    lease: Annotated[float, Field(ge=1, le=600), BeforeValidator(span_in_seconds)] = Field(
        15,
        description="how long the places and reservations of a gateway that died stay taken: "
        "seconds, or a span such as 1m",
    )
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,64}$")] = Field(
        "bitinglip:",
        description="beginning of the names of all keys in Redis; gateways that share have the "
        "same, others that use the same Redis another",
    )
    pool_size: Annotated[int, Field(ge=1, le=1000)] = Field(
        10, description="connections to Redis for cached answers; limits have one of their own"
    )
    cache: bool = Field(
        False,
        description="keep the answers of cache.responses in Redis too, encrypted by the home's "
        "secret.key, so that all gateways with the same one answer from them",
    )
