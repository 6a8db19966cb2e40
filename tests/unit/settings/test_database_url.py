"""The address of PostgreSQL, which may hold a password."""

import pytest
from pydantic import ValidationError

from bitinglip.settings.database import Database, without_password


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:geheim@host/db",
        "postgresql://me:1/geheim@host:5432/db",
        "postgresql://me:ge@geheim@host/db",
        "postgresql://me@host/db?sslmode=require&sslpassword=geheim&x=1",
        "postgresql://me@host/db?password=geheim",
        "postgresql://:geheim@/db?host=/run",
    ],
)
def test_url_of_the_database_is_shown_without_any_password(url: str) -> None:
    told = without_password(url)
    assert "geheim" not in told
    assert told.startswith("postgresql://")
    assert ("host" in told, "db" in told) == (True, True)


def test_url_of_the_database_without_password_is_shown_as_it_is() -> None:
    for url in ("postgresql://me@host:5432/db?sslmode=require", "postgresql:///db?host=/run"):
        assert Database(url=url).model_dump(mode="json")["url"] == url


@pytest.mark.parametrize(
    "url", ["postgresql://me:ge@geheim@host/db", "postgresql://me:1/geheim@host/db"]
)
def test_url_of_the_database_with_an_unescaped_password_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="%40") as caught:
        Database(url=url)
    assert "geheim" not in caught.value.errors()[0]["msg"]
