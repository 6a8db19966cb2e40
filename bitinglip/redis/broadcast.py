"""Tells other gateways what has changed. Alone, a gateway has none to tell."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from bitinglip.redis.messages import Message, Notice

M = TypeVar("M", bound=Message)


class Broadcast:
    """Is the broadcast of a gateway that is alone: it sends and receives nothing."""

    heard = 0  #: messages of others
    gaps = 0  #: how often messages may have been missed

    def publish(self, message: Notice) -> None:
        """Publish a notice to all other gateways, if there are any. It neither waits nor fails.

        A notice that cannot be sent makes them reload everything once Redis is back.
        """

    def subscribe(
        self,
        kind: type[M],
        handler: Callable[[M], Awaitable[None]],
        missed: Callable[[], Awaitable[None]],
    ) -> None:
        """Have ``handler`` called with each message of a kind that another gateway publishes.

        ``missed`` is called where messages may have been lost: it reads from the database
        everything that a message of this kind could have named. Both run one after the other, with
        all others' handlers; what fails is made good by calling ``missed`` until it works.
        """

    async def close(self) -> None:
        """Stop listening."""
