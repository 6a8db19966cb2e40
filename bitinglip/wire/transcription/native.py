"""The native API takes this request for transcription."""

from typing import Annotated, Literal

from pydantic import Field

from bitinglip.scheduling.job import Job
from bitinglip.scheduling.queue.priority import RequestPriority
from bitinglip.wire.body import Body, ModelName, Timeout
from bitinglip.wire.job_context import JobContext
from bitinglip.wire.transcription.job import Language, Prompt, Temperature, transcription_job


class TranscriptionFields(Body):
    """Holds the fields of a form with a ``file``."""

    model: ModelName
    language: Language | None = None
    task: Literal["transcribe", "translate"] = "transcribe"
    prompt: Prompt | None = None
    temperature: Temperature = 0.0
    timestamps: Literal["none", "segment", "word"] = "segment"
    timeout: Timeout | None = None
    stream: bool = False
    priority: RequestPriority = "normal"
    asynchronous: Annotated[bool, Field(alias="async")] = False

    def to_job(self, context: JobContext, file_bytes: int) -> Job:
        """Make the job for a file of so many bytes. Raises PayloadTooLarge."""
        return transcription_job(
            context,
            file_bytes,
            language=self.language,
            task=self.task,
            prompt=self.prompt,
            temperature=self.temperature,
            timestamps=self.timestamps,
            stream=self.stream,
            timeout=self.timeout,
        )


class TranscriptionRequest(TranscriptionFields):
    """Holds the same fields as JSON, with the file in base64."""

    audio: str
