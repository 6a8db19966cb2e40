"""Declares the base of the views that show a job on the surfaces of other APIs."""

from abc import ABC, abstractmethod

from bitinglip.errors import BitingLipError, TaskCancelled
from bitinglip.scheduling.event_log import Event, EventLog, error_of
from workers import protocol


class JobView(ABC):
    """Begins a stream with the first output, and shows an error as its last event."""

    starts_immediately = False

    def __init__(self, event_log: EventLog, request_id: str) -> None:
        self._event_log = event_log
        self._request_id = request_id

    @property
    def stream_media_type(self) -> str | None:
        return None

    @property
    def media_type(self) -> str:
        return "application/json"

    async def prepare_final(self) -> None:  # noqa: B027  a default: few views override it
        """Do nothing: unless the job makes files, its final event holds all that is shown."""

    def render(self, event: Event) -> bytes:
        """Show an error; views show their output, and leave all other events to this."""
        match event:
            case protocol.Failed():
                return self.error_event(error_of(event))
            case protocol.Cancelled():
                return self.error_event(TaskCancelled())
            case _:
                return b""

    @abstractmethod
    def body(self) -> bytes: ...

    @abstractmethod
    def error_event(self, error: BitingLipError) -> bytes:
        """Return an error as an event of a stream that has begun."""
