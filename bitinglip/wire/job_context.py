"""The context holds all that a request needs besides its body to become a job."""

from pathlib import Path

import msgspec

from bitinglip.access.credentials import Credential
from bitinglip.guard.modes import Modes
from bitinglip.scheduling.job import Job, Output
from bitinglip.scheduling.queue.priority import Priority
from bitinglip.settings import Model, Tier
from bitinglip.settings.limits import Limits
from workers import protocol


class JobContext(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of the server and the model, and the caller's key, tier and priority."""

    model: str
    model_settings: Model
    image_side: int = 0  #: pixels that the model was made for; 0 if its files do not tell
    limits: Limits
    tier: Tier
    key_id: str
    credential: Credential | None = None
    timeout: float  #: seconds; a request may ask for less
    priority: Priority
    guard: Modes | None = None
    folder: Path  #: where workers write images and audio to
    uploads: Path  #: where the files are that clients send

    def job(
        self,
        work: protocol.Job,
        *,
        timeout: float | None = None,
        output: Output = "b64",
        file_bytes: int = 0,
        seeded: bool = False,
    ) -> Job:
        """Put a message into its envelope."""
        return Job(
            work=work,
            model=self.model,
            key_id=self.key_id,
            credential=self.credential,
            timeout=min(timeout or self.timeout, self.timeout),
            priority=self.priority,
            output=output,
            file_bytes=file_bytes,
            seeded=seeded,
            guard=self.guard,
        )
