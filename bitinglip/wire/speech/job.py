"""Both surfaces make speech jobs here, within the limits of server and key."""

import secrets
from typing import Annotated, Any

from pydantic import Field

from bitinglip.errors import InvalidRequest
from bitinglip.scheduling.job import FileOutput, Job, new_task_id
from bitinglip.wire.body import named_language
from bitinglip.wire.job_context import JobContext
from workers import protocol

_MOST_CHARACTERS = 1_000_000  #: before the settings are asked


_RANDOM_SEEDS = 2**32


Voice = Annotated[str, Field(min_length=1, max_length=128)]


#: a code, with a region or not, or an English name; blank or ``auto`` is none
Language = Annotated[str, Field(max_length=32)]


Speed = Annotated[float, Field(ge=0.25, le=4)]


SampleRate = Annotated[int, Field(ge=8000, le=48_000)]


def speech_job(
    context: JobContext,
    *,
    text: str,
    param: str,
    voice: str | None,
    language: str | None,
    instructions: str | None = None,
    seed: int | None,
    timeout: float | None = None,
    output: FileOutput = "b64",
    **job_fields: Any,
) -> Job:
    """Make the job; ``param`` is what the surface calls the text. Raises InvalidRequest."""
    own, most = context.model_settings.speech, context.limits.speech.max_characters
    if context.tier.speech.max_characters is not None:
        most = min(most, context.tier.speech.max_characters)
    if not text.strip():
        raise InvalidRequest(f"'{param}' holds nothing to say.", param=param)
    if len(text) > most:
        raise InvalidRequest(
            f"'{param}' has {len(text)} characters; at most {most} are allowed.",
            param=param,
            details={"characters": len(text), "max_characters": most},
        )
    work = protocol.SpeechJob(
        id=new_task_id(),
        text=text,
        voice=own.voice_aliases.get(voice or own.voice or "", voice or own.voice),
        language=named_language(language) or own.language,
        instructions=instructions,
        seed=secrets.randbelow(_RANDOM_SEEDS) if seed is None else seed,
        folder=str(context.folder),
        metadata=own.metadata,
        **job_fields,
    )
    return context.job(work, timeout=timeout, output=output, seeded=seed is not None)
