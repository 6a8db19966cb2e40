"""Declares the settings of the database, which keeps keys, tasks, usage and the audit log."""

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PlainSerializer

from bitinglip.settings.sections import Section

_SCHEMES = ("postgresql+psycopg", "postgresql", "postgres")
#: to the last @ before the query: of a password that is not escaped, too, nothing is shown
_PASSWORD = re.compile(r"(//[^:@/?]*):[^?]*@|([?&](?:ssl)?password=)[^&]*")


def _is_postgres(url: str) -> str:
    """Refuse what is no URL of PostgreSQL; never quote it, for it may hold a password."""
    try:
        parts = urlsplit(url)
        name, _ = parts.path.lstrip("/"), parts.port
    except ValueError:
        name, parts = "", urlsplit("")
    if parts.scheme not in _SCHEMES or not name:
        raise ValueError(
            "must be a URL such as postgresql+psycopg://user@host/database; null keeps SQLite in "
            "the home folder"
        )
    if parts.netloc.count("@") > 1 or "@" in parts.path:
        raise ValueError("has an @ too many: in names and passwords write %40 for @, and %2F for /")
    return url


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
