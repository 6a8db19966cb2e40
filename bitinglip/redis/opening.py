"""Opens what gateways share where the settings ask for it; redis is imported only then."""

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, NamedTuple

from bitinglip.extras import install_command
from bitinglip.redis.broadcast import Broadcast
from bitinglip.settings.redis import Redis as RedisSettings
from bitinglip.settings_loader import SettingsError
from bitinglip.telemetry.health import Health

if TYPE_CHECKING:
    from bitinglip.redis.link import RedisLink

_MISSING = "redis.url needs the package redis, which is not installed"


class SharedRedis(NamedTuple):
    """Holds what connects this gateway with others; alone it has no link."""

    link: "RedisLink | None"
    broadcast: Broadcast

    @classmethod
    async def open(
        cls, settings: RedisSettings, health: Health, stack: AsyncExitStack
    ) -> "SharedRedis":
        """Raises SettingsError where the settings ask for what is not there."""
        if settings.url is None:
            return cls(None, Broadcast())
        check_redis(settings)
        from bitinglip.redis.link import RedisLink
        from bitinglip.redis.remote import RedisBroadcast

        link = await RedisLink.opened(settings, health)
        stack.push_async_callback(link.close)
        broadcast = RedisBroadcast(link)
        stack.push_async_callback(broadcast.close)
        return cls(link, broadcast)


def check_redis(settings: RedisSettings) -> None:
    """Raise SettingsError where the settings ask for what is not installed."""
    if settings.url is None:
        return
    try:
        import hiredis  # noqa: F401  both tell whether the extra is there
        import redis.asyncio  # noqa: F401
    except ImportError:
        raise SettingsError([f"{_MISSING}; run: {install_command('redis')}"]) from None
