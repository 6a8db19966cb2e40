"""Checks whether Redis answers and suits limits, where the settings name one."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cli.checks.findings import Finding, told

if TYPE_CHECKING:
    from bitinglip.settings import Settings

_OLDEST = (5, 0)  #: Lua scripts of older ones may not ask for the time
_SECONDS = 2.0
_PASSWORD = "correct redis.password_file, or user and password in redis.url"


def redis(settings: "Settings") -> Iterator[Finding]:
    """Find a Redis that does not answer, refuses, forgets what limits need, or is too old."""
    from bitinglip.redis.opening import check_redis
    from bitinglip.settings.redis import without_password
    from bitinglip.settings_loader import SettingsError
    from workers.secret_files import SecretFileRefused, read_secret_text

    own = settings.redis
    if own.url is None:
        return
    shown = without_password(own.url)
    try:
        check_redis(own)
    except SettingsError as error:
        yield told("redis", error)
        return
    try:
        password = None if own.password_file is None else read_secret_text(own.password_file)
    except SecretFileRefused as error:
        advice = "correct the setting, or the file's rights"
        yield Finding("redis", "error", f"redis.password_file: {error}", advice)
        return
    from redis.exceptions import AuthenticationError, AuthorizationError

    from bitinglip.redis.pipeline import fault_of

    try:
        info = _info(own.url, password)
    except Exception as error:  # noqa: BLE001  the library's own, and the system's
        problem = f"{shown}: {fault_of(error)}; {_MEANWHILE[own.when_away]}"
        refused = isinstance(error, (AuthenticationError, AuthorizationError))
        advice = _PASSWORD if refused else "start it, or correct redis.url"
        yield Finding("redis", "warning", problem, advice)
        return
    yield from _judged(shown, info)


_MEANWHILE = {
    "refuse": "limited requests are refused",
    "local": "each gateway applies limits by itself",
}


def _info(url: str, password: str | None) -> dict[str, Any]:
    from redis import Redis

    options: dict[str, Any] = {} if password is None else {"password": password}
    with Redis.from_url(
        url, protocol=2, socket_timeout=_SECONDS, socket_connect_timeout=_SECONDS, **options
    ) as client:
        found: dict[str, Any] = client.info()
        return found


def _judged(shown: str, info: dict[str, Any]) -> Iterator[Finding]:
    version = str(info.get("redis_version", "0"))
    name = f"{info.get('server_name', 'redis')} {info.get('valkey_version', version)}"
    mode = info.get("redis_mode", info.get("server_mode", "standalone"))  # Valkey's name since 9
    if mode != "standalone":
        problem = f"{shown} is a {mode}, whose redirections are not followed"
        yield Finding("redis", "error", problem, "name the primary, or a proxy with one address")
    elif tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        yield Finding("redis", "error", f"{shown} is {name}", f"install {oldest} or newer")
    elif info.get("role") == "slave":
        problem = f"{shown} is a replica, which takes no writes"
        yield Finding("redis", "error", problem, "name the primary in redis.url")
    elif str(info.get("maxmemory_policy", "noeviction")) != "noeviction":
        yield Finding(
            "redis",
            "warning",
            f"{shown} forgets keys when its memory is full ({info['maxmemory_policy']}): limits "
            "would begin again",
            "set maxmemory-policy noeviction",
        )
    else:
        yield Finding("redis", "ok", f"{name} answers at {shown}")
