"""Both surfaces make transcription jobs here, within the limits of server and key."""

from typing import Annotated, Any

from pydantic import Field

from bitinglip.errors import PayloadTooLarge
from bitinglip.scheduling.job import Job, new_task_id
from bitinglip.wire.body import named_language
from bitinglip.wire.job_context import JobContext
from workers import protocol

#: a code, with a region or not, or an English name; blank or ``auto``: the model finds out
Language = Annotated[str, Field(max_length=32)]


Prompt = Annotated[str, Field(max_length=4096)]


Temperature = Annotated[float, Field(ge=0, le=1)]


def transcription_job(
    context: JobContext,
    file_bytes: int,
    *,
    language: str | None = None,
    timeout: float | None = None,
    **job_fields: Any,
) -> Job:
    """Make the job; the file, of so many bytes, is to be written where it says that it is.

    Raises PayloadTooLarge.
    """
    limits, of_tier = context.limits.transcription, context.tier.transcription
    most = of_tier.max_bytes
    if most is not None and file_bytes > most:
        raise PayloadTooLarge(f"A file of this key may have {most} bytes; this has {file_bytes}.")
    task_id = new_task_id()
    seconds = (limits.max_seconds, of_tier.max_seconds)
    work = protocol.TranscriptionJob(
        id=task_id,
        path=str(context.uploads / f"{task_id}-file"),
        language=named_language(language),
        voice_activity=context.model_settings.transcription.voice_activity,
        max_seconds=min(each for each in seconds if each is not None),
        max_channels=limits.max_channels,
        max_sample_rate=limits.max_sample_rate,
        **job_fields,
    )
    return context.job(work, timeout=timeout, file_bytes=file_bytes)
