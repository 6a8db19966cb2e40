"""The transcription job that both surfaces ask for, within the limits of server and key."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from bitinglip.errors import PayloadTooLarge
from bitinglip.scheduling.job import TranscriptionJob, new_task_id
from bitinglip.scheduling.queue.priority import Priority
from bitinglip.settings import Tier, TranscriptionLimits

Language = Annotated[str, Field(min_length=2, max_length=32)]


Prompt = Annotated[str, Field(max_length=4096)]


Temperature = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscriptionTerms:
    """What the server and the caller's key give a request for transcription."""

    limits: TranscriptionLimits
    tier: Tier
    key_id: str
    timeout: float
    priority: Priority
    folder: Path

    def job(self, *, size: int, timeout: float | None = None, **more: Any) -> TranscriptionJob:
        """The work; the file, of so many bytes, is to be written where it says that it is.
        Raises PayloadTooLarge."""
        most = self.tier.transcription.max_bytes
        if most is not None and size > most:
            raise PayloadTooLarge(f"A file of this key may have {most} bytes; this has {size}.")
        task_id = new_task_id()
        seconds = (self.limits.max_seconds, self.tier.transcription.max_seconds)
        return TranscriptionJob(
            id=task_id,
            key_id=self.key_id,
            path=str(self.folder / f"{task_id}-file"),
            size=size,
            max_seconds=min(each for each in seconds if each is not None),
            max_channels=self.limits.max_channels,
            max_sample_rate=self.limits.max_sample_rate,
            timeout=timeout or self.timeout,
            priority=self.priority,
            **more,
        )
