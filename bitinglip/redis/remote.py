"""Tells other gateways what has changed, over Redis's channels, which keep nothing.

So every gap ends with a reload: after a reconnect, after a notice that could not be sent, and after
a handler that failed.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec
import structlog
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from bitinglip.redis.broadcast import Broadcast, M
from bitinglip.redis.link import RedisLink
from bitinglip.redis.messages import Envelope, Message, Missed, Notice

log = structlog.get_logger(__name__)

_PING_SECONDS = 2.0  #: of silence, after which Redis is asked whether the connection lives
_DEAD_SECONDS = 6.0  #: of silence, after which it does not
_RETRY_SECONDS = 1.0  #: between two attempts to reload, or to listen again

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Envelope).decode


class _Subscription(NamedTuple):
    kind: type[Message]
    handler: Callable[[Any], Awaitable[None]]
    missed: Callable[[], Awaitable[None]]


class RedisBroadcast(Broadcast):
    """Listens from the first subscription on, until it is closed."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._channel = f"{link.prefix}broadcast"
        self._subscriptions: list[_Subscription] = []
        self._stale: set[int] = set()  #: indices of subscriptions that have to reload
        self._untold = False  #: a message was lost on its way out
        self._listening: asyncio.Task[None] | None = None
        link.on_return(self._tell_of_gap)

    def publish(self, message: Notice) -> None:
        envelope = _encode(Envelope(self._link.gateway, message))
        told = self._link.command("PUBLISH", self._channel, envelope)
        told.add_done_callback(self._note)

    def subscribe(
        self,
        kind: type[M],
        handler: Callable[[M], Awaitable[None]],
        missed: Callable[[], Awaitable[None]],
    ) -> None:
        self._subscriptions.append(_Subscription(kind, handler, missed))
        if self._listening is None:
            self._listening = asyncio.create_task(self._listen(), name="broadcast")

    async def close(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)

    def _note(self, told: "asyncio.Future[Any]") -> None:
        if not told.cancelled() and told.exception() is not None:
            self._untold = True

    async def _tell_of_gap(self) -> None:
        if self._untold:
            self._untold = False
            self.publish(Missed())

    async def _listen(self) -> None:
        """Receive messages for as long as the server runs."""
        while True:
            try:
                await self._listen_once()
            except (RedisError, OSError):
                self._link.check_now()
                await asyncio.sleep(_RETRY_SECONDS / 2)
            except Exception:  # a bug in a handler must not end all that follows
                log.exception("listening to other gateways failed")
                await asyncio.sleep(_RETRY_SECONDS)

    async def _listen_once(self) -> None:
        """Receive messages for as long as one connection lives. Raises RedisError or OSError."""
        client = self._link.client(connections=1, timeout=_DEAD_SECONDS)
        try:
            async with client.pubsub() as channel:
                await channel.subscribe(self._channel)
                await self._hear(channel)
        finally:
            await client.aclose(close_connection_pool=True)  # which may fail, too

    async def _hear(self, channel: PubSub) -> None:
        """Pass messages on. Raises RedisError once the connection is silent for too long."""
        loop = asyncio.get_running_loop()
        heard = asked = loop.time()
        while True:
            message = await channel.get_message(timeout=_RETRY_SECONDS)
            now = loop.time()
            if message is not None:
                heard = now
                await self._take(message)
            elif now - heard > _DEAD_SECONDS:
                raise RedisError("silent")
            elif now - heard > _PING_SECONDS and now - asked > _PING_SECONDS:
                asked = now
                await channel.ping()
            if self._stale:
                await self._reload()

    async def _take(self, message: dict[str, Any]) -> None:
        if message["type"] == "subscribe":  # what came before is lost
            self.miss()
            return
        if message["type"] != "message":
            return
        try:
            envelope = _decode(message["data"])
        except (msgspec.DecodeError, ValueError, RecursionError):  # of another version, or not ours
            log.debug("a message of other gateways is not understood")
            return
        if envelope.gateway == self._link.gateway:
            return
        self.heard += 1
        if isinstance(envelope.told, Missed):
            self.miss()
            return
        for index, each in enumerate(self._subscriptions):
            if isinstance(envelope.told, each.kind):
                await self._run(index, each.handler(envelope.told))

    def miss(self) -> None:
        """Have every subscriber reload."""
        self.gaps += 1
        self._stale.update(range(len(self._subscriptions)))

    async def _reload(self) -> None:
        for index in list(self._stale):
            self._stale.discard(index)
            await self._run(index, self._subscriptions[index].missed())

    async def _run(self, index: int, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001  it is made good by a reload
            log.warning("news of other gateways could not be taken in", reason=repr(error)[:200])
            self._stale.add(index)
