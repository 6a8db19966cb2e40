"""The speech job that both surfaces ask for, within the limits of server and key."""

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from bitinglip.errors import InvalidRequest
from bitinglip.scheduling.job import SpeechJob
from bitinglip.scheduling.queue.priority import Priority
from bitinglip.settings import SpeechLimits, SpeechModel, Tier

_MOST_CHARACTERS = 1_000_000  #: before the settings are asked


_RANDOM_SEEDS = 2**32


Voice = Annotated[str, Field(min_length=1, max_length=128)]


Language = Annotated[str, Field(min_length=2, max_length=16)]


Speed = Annotated[float, Field(ge=0.25, le=4)]


SampleRate = Annotated[int, Field(ge=8000, le=48_000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechTerms:
    """What the server, the model and the caller's key give a request for speech."""

    own: SpeechModel
    limits: SpeechLimits
    tier: Tier
    key_id: str
    timeout: float
    priority: Priority
    folder: Path

    def job(
        self, *, text: str, param: str, voice: str | None, seed: int | None = None, **more: Any
    ) -> SpeechJob:
        """The work; ``param`` is what the surface calls the text."""
        most = self.limits.max_characters
        if self.tier.speech.max_characters is not None:
            most = min(most, self.tier.speech.max_characters)
        if not text.strip():
            raise InvalidRequest(f"'{param}' holds nothing to say.", param=param)
        if len(text) > most:
            raise InvalidRequest(
                f"'{param}' has {len(text)} characters; at most {most} are allowed.",
                param=param,
                details={"characters": len(text), "max_characters": most},
            )
        defaults: dict[str, Any] = {"timeout": self.timeout, "language": self.own.language}
        given = {name: value for name, value in more.items() if value is not None}
        return SpeechJob(
            key_id=self.key_id,
            text=text,
            voice=voice or self.own.voice,
            seed=secrets.randbelow(_RANDOM_SEEDS) if seed is None else seed,
            folder=str(self.folder),
            metadata=self.own.metadata,
            priority=self.priority,
            **(defaults | given),
        )
