"""The model manager talks to the dispatcher through this interface."""

from dataclasses import dataclass
from typing import Protocol

from bitinglip import errors


@dataclass(frozen=True, slots=True)
class Waiting:
    """Counts the requests that wait for a model."""

    count: int
    since: float  #: when the oldest came
    level: int


class ModelListener(Protocol):
    """Uses the models' replicas: the dispatcher."""

    def on_ready(self, model: str) -> None:
        """Take note that a replica of the model takes work."""
        ...

    def on_unavailable(self, model: str, error: errors.BitingLipError) -> None:
        """Fail the waiting requests of a model that cannot be loaded."""
        ...

    def waiting(self, model: str) -> Waiting | None: ...
    def busy(self, model: str) -> int:
        """Count the model's running and waiting jobs."""
        ...

    def clear_quarantine(self, model: str) -> None:
        """Let requests of the model out of quarantine."""
        ...
