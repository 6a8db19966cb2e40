"""OpenAI's surface takes this request for embeddings. A field that is not here is refused by name.

Our additional fields are ``prompt_name`` and ``truncate``; ``user`` has no effect.
"""

from typing import Annotated, Literal

from pydantic import Field

from bitinglip.scheduling.job import Job
from bitinglip.wire.body import Body, ModelName
from bitinglip.wire.embedding.job import Dimensions, PromptName, embedding_job, texts_of
from bitinglip.wire.embedding.native import Input
from bitinglip.wire.job_context import JobContext

Encoding = Literal["float", "base64"]


class EmbeddingRequest(Body):
    model: ModelName
    input: Input
    encoding_format: Encoding | None = None
    dimensions: Dimensions | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    prompt_name: PromptName | None = None
    truncate: bool | None = None

    def to_job(self, context: JobContext) -> Job:
        """Make the job that this request asks for. Raises InvalidRequest."""
        return embedding_job(
            context,
            texts_of(self.input),
            prompt_name=self.prompt_name,
            dimensions=self.dimensions,
            truncate=self.truncate,
        )
