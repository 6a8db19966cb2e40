"""The second of a request's four shapes: what the gateway knows about a piece of work."""

import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import ClassVar

from workers import protocol


def new_task_id() -> str:
    """Time-ordered and unguessable enough to be a name: 48 bits of milliseconds, 80 of chance."""
    stamp = time.time_ns() // 1_000_000
    return f"task-{stamp:012x}{uuid.uuid4().hex[:20]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextJob:
    """Text to generate for a caller, all fields checked against the model's manifest."""

    kind: ClassVar[str] = "text"

    model: str
    key_id: str
    sampling: protocol.Sampling
    prompt: str | None = None
    messages: tuple[protocol.ChatMessage, ...] | None = None
    clip_max_tokens: bool = False
    stream: bool = False
    timeout: float = 600.0  #: seconds from now on, waiting included
    id: str = field(default_factory=new_task_id)
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def message(self) -> protocol.TextJob:
        """The third shape: what goes to the worker. No key, no caller."""
        return protocol.TextJob(
            id=self.id,
            prompt=self.prompt,
            messages=self.messages,
            sampling=self.sampling,
            clip_max_tokens=self.clip_max_tokens,
            stream=self.stream,
        )


Job = TextJob
