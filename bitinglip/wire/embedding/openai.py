"""OpenAI's surface takes this request for embeddings.

Our additional fields are ``prompt_name`` and ``truncate``.
"""

from typing import Literal

from bitinglip.scheduling.job import Job
from bitinglip.wire.body import ModelName
from bitinglip.wire.embedding.job import Dimensions, PromptName, embedding_job, texts_of
from bitinglip.wire.embedding.native import Input
from bitinglip.wire.job_context import JobContext
from bitinglip.wire.openai_body import Label, OpenAIRequest
from bitinglip.wire.plain import PlainReader

Encoding = Literal["float", "base64"]


class EmbeddingRequest(OpenAIRequest):
    model: ModelName
    input: Input
    encoding_format: Encoding | None = None
    dimensions: Dimensions | None = None
    user: Label = None
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


PlainReader(EmbeddingRequest, {"input": (str | list[str], lambda texts: texts)}).used()
