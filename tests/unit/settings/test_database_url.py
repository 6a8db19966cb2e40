"""The address of PostgreSQL, which may hold a password."""

import pytest
from pydantic import ValidationError

from bitinglip.db.files import DatabaseError
from bitinglip.db.postgres import address
from bitinglip.settings.database import Database, without_password


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:geheim@host/db",
        "postgresql://me:1/geheim@host:5432/db",
        "postgresql://me:ge@geheim@host/db",
        "postgresql://me:1?geheim@host/db",
        "postgresql://me:1/a?geheim@host/db",
        "postgresql://me:1/a?b=geheim@host/db",
        "postgresql://me:1#geheim@host/db",
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
    "url",
    [
        "postgresql://me:ge@geheim@host/db",
        "postgresql://me:1/geheim@host/db",
        "postgresql://me:ge?geheim@host/db",
        "postgresql://me:1/a?geheim@host/db",
        "postgresql://me:1/a?b=geheim@host/db",
        "postgresql://me:ge#geheim@host/db",
        "postgresql://me:1/a#geheim@host/db",
        "postgresql://me:ge geheim@host/db",
        "postgresql://me@host/db geheim",
    ],
)
def test_url_of_the_database_with_an_unescaped_password_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="%40") as caught:
        Database(url=url)
    assert "geheim" not in caught.value.errors()[0]["msg"]


@pytest.mark.parametrize("query", ["sslmode", "a=1&&b=2", "a=1&b"])
def test_url_of_the_database_with_parameters_that_say_nothing_is_refused(query: str) -> None:
    with pytest.raises(ValidationError, match="sslmode=require"):
        Database(url=f"postgresql://me@host/db?{query}")


def test_url_of_the_database_keeps_what_is_escaped() -> None:
    url = "postgresql://me%40home:a%3Fb%23c%2Fd%20e@host/db?application_name=x%3F"
    made = address(Database(url=url).url or "")
    assert (made.username, made.password, made.host) == ("me@home", "a?b#c/d e", "host")
    assert dict(made.query) == {"application_name": "x?"}


@pytest.mark.parametrize("name", ["autocommit", "row_factory", "Host", "sslmod"])
def test_url_of_the_database_with_a_parameter_of_nobody_s_is_refused(name: str) -> None:
    with pytest.raises(DatabaseError, match=f"no parameter {name}") as caught:
        address(f"postgresql://me:geheim@host/db?{name}=1")
    assert "geheim" not in str(caught.value)
