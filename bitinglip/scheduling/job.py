"""The second of a request's four shapes: what the gateway knows about a piece of work."""

import hashlib
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import ClassVar

from bitinglip.scheduling.standing import Standing
from workers import protocol

_AFFINITY_CHARACTERS = 1024
_CHARACTERS_PER_TOKEN = 4


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
    standing: Standing = field(default_factory=Standing)
    id: str = field(default_factory=new_task_id)
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def work(self) -> float:
        """An estimate in tokens: what the queue is fair in."""
        return self._characters / _CHARACTERS_PER_TOKEN + self.sampling.max_tokens

    @property
    def _characters(self) -> int:
        if self.prompt is not None:
            return len(self.prompt)
        return sum(len(message.content) for message in self.messages or ())

    def affinity(self) -> bytes:
        """The same for jobs that share a beginning: the turns of one conversation, say."""
        if self.prompt is not None:
            start = self.prompt[:_AFFINITY_CHARACTERS]
        else:
            start = "\0".join(message.content for message in (self.messages or ())[:2])
        text = f"{self.key_id}\0{start[:_AFFINITY_CHARACTERS]}"
        return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()

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
