"""The address of Redis: what is taken, and that no message shows its password."""

import pytest
from pydantic import ValidationError

from bitinglip.settings.redis import Redis


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://:secret@box:6380/3",
        "rediss://user:se%40cret@box/0?ssl_ca_certs=/etc/ca.pem",
        "unix:///run/redis.sock",
        "unix://:secret@/run/redis.sock?db=2",
    ],
)
def test_redis_url_is_shown_without_its_password(url: str) -> None:
    settings = Redis(url=url)
    assert settings.url == url
    shown = settings.model_dump(mode="json")["url"]
    assert "cret" not in shown
    assert shown.partition(":")[0] == url.partition(":")[0]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("localhost:6379", "must be a URL"),
        ("http://:secret@box", "must be a URL"),
        ("redis://", "must be a URL"),
        ("redis://:secret@box:port", "must be a URL"),
        ("redis://:sec@ret@box/0", "an @ too many"),
        ("redis://:sec/ret@box", "must be a URL"),
        ("redis://:secret@box/cache", "number of the database"),
        ("redis://:secret@box/0?socket_timeout=60", "'socket_timeout'"),
        ("unix://", "must be a URL"),
    ],
)
def test_redis_url_that_is_none_is_refused_and_not_quoted(url: str, says: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Redis(url=url)
    [error] = refused.value.errors()
    assert says in error["msg"]
    assert "sec" not in error["msg"].replace("seconds", "")
