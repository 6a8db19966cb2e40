"""The address of Redis: what is taken, and that no message shows its password."""

from typing import Any

import pytest
from pydantic import ValidationError

from bitinglip.settings import Settings
from bitinglip.settings.redis import Redis
from bitinglip.settings_loader import SettingsError, check_start


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
        ("redis://user:6379?sec=ret@box", "an @ too many"),
        ("redis://user:6379?db=sec@box", "an @ too many"),
        ("redis://user:6379#sec@box", "an @ too many"),
        ("redis://:secret@box/cache", "number of the database"),
        ("redis://:secret@box/0?socket_timeout=60", "'socket_timeout'"),
        ("unix://", "must be a URL"),
        ("redis+sentinel://box:26379/primary", "Sentinel and Cluster are not followed"),
        ("sentinel://box", "name the primary, or a proxy"),
        ("redis+cluster://box", "one server"),
        ("redis://:secret@one:6379,two:6379/0", "one server"),
        ("redis://box/0?ssl_ca_certs=/etc/ca.pem", "which rediss:// speaks"),
    ],
)
def test_redis_url_that_is_none_is_refused_and_not_quoted(url: str, says: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Redis(url=url)
    [error] = refused.value.errors()
    assert says in error["msg"]
    assert "sec" not in error["msg"].replace("seconds", "")


@pytest.mark.parametrize(
    "settings",
    [
        {"redis": {"cache": True}, "cache": {"responses": True}},
        {"redis": {"cache": True, "url": "redis://box"}},
    ],
)
def test_redis_cache_that_would_keep_nothing_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"redis\.cache keeps nothing"):
        check_start(Settings.model_validate(settings))
    whole = {"redis": {"cache": True, "url": "redis://box"}, "cache": {"responses": True}}
    check_start(Settings.model_validate(whole))
