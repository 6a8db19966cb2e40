"""Server-sent events: how they look as bytes, and how one job's events become them."""

from collections.abc import AsyncIterator
from typing import Protocol

from bitinglip.scheduling.event_log import Event, EventLog

KEEP_ALIVE = b": keep-alive\n\n"
KEEP_ALIVE_SECONDS = 15.0
DONE = b"data: [DONE]\n\n"


class View(Protocol):
    """How one surface shows a job's events. Made for one job; remembers what it has shown."""

    @property
    def starts_immediately(self) -> bool:
        """Whether the stream begins with the job, or with its first output."""
        ...

    @property
    def stream_media_type(self) -> str | None:
        """The media type of a stream that is not of events, but of the output itself."""
        ...

    @property
    def media_type(self) -> str:
        """Of the answer as one body."""
        ...

    def render(self, event: Event) -> bytes:
        """The event as bytes of a stream; empty if this surface does not show it."""
        ...

    async def prepare_final(self) -> None:
        """Make ready what the final event shows; awaited once, before that is rendered."""
        ...

    def body(self) -> bytes:
        """The answer of a job that succeeded, as one body."""
        ...


def sse(data: bytes, event: str = "") -> bytes:
    """One server-sent event; ``data`` is JSON without line breaks."""
    if event:
        return b"event: %b\ndata: %b\n\n" % (event.encode(), data)
    return b"data: %b\n\n" % data


async def chunks(event_log: EventLog, view: View) -> AsyncIterator[tuple[bytes, bool]]:
    """What to write next, and whether it is the last: all events that came meanwhile at once."""
    async for events in event_log.batches():
        last = event_log.final is not None and events[-1] is event_log.final
        if last:
            await view.prepare_final()
        data = b"".join([view.render(event) for event in events])
        if data or last:
            yield data, last
