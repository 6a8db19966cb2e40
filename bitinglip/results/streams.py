"""Streams turn one job's events into the bytes of server-sent events."""

from collections.abc import AsyncIterator
from typing import Protocol

from bitinglip.scheduling.event_log import Event, EventLog, Loading

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


class View(Protocol):
    """Shows one job's events on one surface; it remembers what it has shown."""

    @property
    def starts_immediately(self) -> bool:
        """Return True if the stream begins with the job, False if with its first output."""
        ...

    @property
    def stream_media_type(self) -> str | None:
        """Return the media type of a stream of the output itself; None for one of events."""
        ...

    @property
    def media_type(self) -> str:
        """Return the media type of the answer as one body."""
        ...

    def render(self, event: Event) -> bytes:
        """Encode an event for a stream; empty if this surface does not show it."""
        ...

    async def prepare_final(self) -> None:
        """Prepare what the final event shows; awaited once, before it is rendered."""
        ...

    def body(self) -> bytes:
        """Encode the answer of a job that succeeded as one body. Raises its error if it has one."""
        ...


def sse(data: bytes, event: str = "") -> bytes:
    """Encode a server-sent event; ``data`` is JSON without line breaks."""
    if event:
        return b"event: %b\ndata: %b\n\n" % (event.encode(), data)
    return b"data: %b\n\n" % data


def comment(event_log: EventLog | None) -> bytes:
    """Return the comment of a silent stream: what its job waits for, as far as that is known."""
    if event_log is None or event_log.dispatched is not None:
        return KEEP_ALIVE
    last = event_log.events[-1] if event_log.events else None
    if isinstance(last, Loading):
        return b": loading %d%%\n\n" % round(last.progress * 100)
    place = event_log.place
    return KEEP_ALIVE if place is None else b": queued %d\n\n" % place.position


async def chunks(event_log: EventLog, view: View) -> AsyncIterator[tuple[bytes, bool]]:
    """Yield the bytes to write next, and whether they are the last: all new events at once."""
    async for events in event_log.batches():
        last = event_log.final is not None and events[-1] is event_log.final
        if last:
            await view.prepare_final()
        data = b"".join([view.render(event) for event in events])
        if data or last:
            yield data, last
