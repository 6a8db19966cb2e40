"""The native API takes this request for embeddings."""

from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from bitinglip.errors import InvalidRequest
from bitinglip.scheduling.job import Job
from bitinglip.scheduling.queue.priority import RequestPriority
from bitinglip.wire.body import Body, ModelName, Timeout
from bitinglip.wire.embedding.job import Dimensions, PromptName, embedding_job, texts_of
from bitinglip.wire.job_context import JobContext
from bitinglip.wire.plain import PlainReader

#: Vectors of a task are written to the database as JSON, which takes the event loop's time.
MOST_ASYNCHRONOUS = 256

#: A text or a list of texts; ``texts_of`` checks it.
Input = Annotated[
    Any,
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]


class EmbeddingRequest(Body):
    """Asks for a vector of each text of ``input``."""

    model: ModelName
    input: Input
    prompt_name: PromptName | None = None
    dimensions: Dimensions | None = None
    truncate: bool | None = None
    timeout: Timeout | None = None
    stream: bool = False
    priority: RequestPriority = "normal"
    asynchronous: Annotated[bool, Field(alias="async")] = False

    def to_job(self, context: JobContext, *, background: bool) -> Job:
        """Make the job that this request asks for. Raises InvalidRequest."""
        texts = texts_of(self.input)
        if background and len(texts) > MOST_ASYNCHRONOUS:
            raise InvalidRequest(
                f"An asynchronous request may hold {MOST_ASYNCHRONOUS} texts; send fewer.",
                param="input",
            )
        return embedding_job(
            context,
            texts,
            prompt_name=self.prompt_name,
            dimensions=self.dimensions,
            truncate=self.truncate,
            timeout=self.timeout,
            stream=self.stream,
        )


PlainReader(EmbeddingRequest, {"input": (str | list[str], lambda texts: texts)}).used()
