"""Declares the settings of the database, which keeps keys, tasks, usage and the audit log."""

import re
from typing import Annotated
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, Field, PlainSerializer

from bitinglip.settings.sections import Section

_SCHEMES = ("postgresql+psycopg", "postgresql", "postgres")
#: to the last @: of a password that is not escaped, too, nothing is shown
_PASSWORD = re.compile(r"(//[^:@/?]*):.*@|([?&](?:ssl)?password=)[^&]*")
_UNESCAPED = re.compile(r"[@?#\s]")  #: in a path or a query it is the rest of a password, as a rule


def _is_postgres(url: str) -> str:
    """Refuse what is no URL of PostgreSQL; never quote it, for it may hold a password."""
    if url.partition(":")[0] in _SCHEMES and _has_unescaped(url):
        raise ValueError(
            "has an @, ?, #, / or space too many: in names and passwords write %40 for @, %3F for "
            "?, %23 for #, %2F for / and %20 for a space"
        )
    try:
        parts = urlsplit(url)
        name, _ = parts.path.lstrip("/"), parts.port
        if parts.query:
            parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)
    except ValueError:
        name, parts = "", urlsplit("")
    if parts.scheme.startswith("postgres") and parts.scheme not in _SCHEMES:
        raise ValueError(
            f"must begin with postgresql+psycopg://, not {parts.scheme}://: psycopg is the one "
            "driver that is used"
        )
    if parts.scheme not in _SCHEMES or not name:
        raise ValueError(
            "must be a URL such as postgresql+psycopg://user@host/database, and parameters such as "
            "?sslmode=require; null keeps SQLite in the home folder"
        )
    return url


def _has_unescaped(url: str) -> bool:
    """Return whether a part of a URL holds what only a name or a password would, unescaped."""
    address, _, query = url.partition("?")
    place, _, path = address.partition("://")[2].partition("/")
    several = place.count("@") > 1 or "#" in place or bool(re.search(r"\s", place))
    return several or any(_UNESCAPED.search(each) for each in (path, query))


def without_password(url: str) -> str:
    """Return the URL as messages and ``config show`` may have it."""
    return _PASSWORD.sub(lambda found: f"{found[1]}:***@" if found[1] else f"{found[2]}***", url)


class Database(Section):
    url: (
        Annotated[
            str,
            AfterValidator(_is_postgres),
            PlainSerializer(without_password, when_used="json"),
        ]
        | None
    ) = Field(
        None,
        description="PostgreSQL database, as postgresql+psycopg://user@host/database (needs "
        "bitinglip[postgres]); null uses the SQLite file in the home folder",
    )
    pool_size: int = Field(
        20, ge=1, le=1000, description="connections to PostgreSQL that are kept open"
    )
    max_overflow: int = Field(
        30, ge=0, le=1000, description="further connections to PostgreSQL under load"
    )
    pool_timeout: float = Field(
        30,
        gt=0,
        le=600,
        description="maximum seconds that a request waits for a connection to PostgreSQL",
    )
