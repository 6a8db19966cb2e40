"""Tests what doctor says of Redis."""

from pathlib import Path
from typing import Any

import pytest

from bitinglip.settings import Settings
from cli.checks.redis import _judged
from cli.checks.redis import redis as redis_check
from tests.support.redis import RedisServer


def check(**own: Any) -> list[tuple[str, str]]:
    found = redis_check(Settings.model_validate({"redis": own}))
    return [(str(each.level), each.detail) for each in found]


def test_redis_check_says_nothing_without_one() -> None:
    assert check() == []


def test_redis_check_names_the_server_that_answers(redis: RedisServer) -> None:
    [(level, text)] = check(url=redis.url)
    assert level == "ok"
    assert "answers at unix://" in text


def test_redis_check_warns_of_one_that_forgets(redis: RedisServer) -> None:
    with redis.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        [(level, text)] = check(url=redis.url)
        client.config_set("maxmemory-policy", "noeviction")
    assert level == "warning"
    assert "allkeys-lru" in text


def test_redis_check_tells_what_happens_without_it_and_no_password(tmp_path: Path) -> None:
    url = f"unix://:hunter2@{tmp_path}/none"
    [(level, text)] = check(url=url, when_away="refuse")
    assert level == "warning"
    assert "limited requests are refused" in text
    assert "hunter2" not in text
    (binary := tmp_path / "binary").touch(0o600)
    binary.write_bytes(b"hunter2\xff")
    (open_ := tmp_path / "open").write_text("hunter2")
    for file in (tmp_path / "none", binary, open_):
        [(level, text)] = check(url=url, password_file=str(file))
        assert level == "error"
        assert str(file) in text
        assert "hunter2" not in text


def test_redis_check_says_that_the_password_is_refused(redis: RedisServer) -> None:
    [finding] = redis_check(
        Settings.model_validate({"redis": {"url": f"unix://:wrong@{redis.socket}"}})
    )
    assert "refuses the password" in finding.detail
    assert "redis.password_file" in finding.advice
    assert "wrong" not in finding.detail


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({"redis_version": "4.0.9"}, "4.0.9"),
        ({"redis_version": "7.2", "role": "slave"}, "replica"),
        ({"redis_version": "7.2.4", "server_mode": "cluster"}, "a cluster"),  # as Valkey says it
    ],
)
def test_redis_check_finds_what_cannot_serve(info: dict[str, Any], words: str) -> None:
    [finding] = _judged("redis://box", info)
    assert finding.level == "error"
    assert words in finding.detail
