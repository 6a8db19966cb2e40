"""Ends a connection in order when its response begins before the request's body has arrived."""

import asyncio
from collections.abc import Callable
from typing import cast

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class EarlyResponse:
    """Stands for the transport of a cycle whose body is still arriving.

    With ``ends`` a response that begins now says ``Connection: close``, because the rest of the
    body will not be read: the client must not use the connection again. A connection that ends
    lingers, because a socket that is closed with unread data would reset it under the client.
    """

    def __init__(
        self, cycle: RequestResponseCycle, hang_up: Callable[[], None], *, ends: bool
    ) -> None:
        self.close = hang_up  #: a cycle calls this at the end of a response that is the last
        self._cycle = cycle
        self.keep_alive = cycle.keep_alive  #: once the body is here
        self._transport = cycle.transport
        self.write = self._transport.write
        self.is_closing = self._transport.is_closing
        cycle.transport = cast("asyncio.Transport", self)  # of which a cycle uses these three
        if ends:
            cycle.keep_alive = False

    def end(self) -> None:
        """Note that the body is here: a response that has not begun keeps the connection."""
        if not self._cycle.response_started:
            self._cycle.transport = self._transport
            self._cycle.keep_alive = self.keep_alive
