"""Both surfaces make embedding jobs here, within the limits of the server."""

from typing import Annotated, Any

from pydantic import Field

from bitinglip.errors import InvalidRequest
from bitinglip.scheduling.job import Job, new_task_id
from bitinglip.wire.body import coalesce
from bitinglip.wire.job_context import JobContext
from workers import protocol

TOKEN_IDS = (
    "Token ids are taken for another model's: send text. LangChain's OpenAIEmbeddings sends text "
    "with check_embedding_ctx_length=False."
)
Dimensions = Annotated[int, Field(ge=1, le=1_000_000)]
PromptName = Annotated[str, Field(max_length=256)]


def texts_of(value: Any) -> list[str]:
    """Return the texts of an ``input``: one, or a list. Raises InvalidRequest."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise InvalidRequest("'input' must be a text or a list of texts.", param="input")
    for index, text in enumerate(texts):
        if isinstance(text, str):
            continue
        first = text[0] if isinstance(text, list) and text else text
        if isinstance(first, int) and not isinstance(first, bool):
            raise InvalidRequest(TOKEN_IDS, param="input")
        raise InvalidRequest("Each input must be a text.", param=f"input[{index}]")
    return texts


def embedding_job(
    context: JobContext,
    texts: list[str],
    *,
    query: str | None = None,
    field: str = "input",
    prompt_name: str | None,
    dimensions: int | None = None,
    truncate: bool | None,
    timeout: float | None = None,
    stream: bool = False,
) -> Job:
    """Make the job; ``field`` is where the request holds its texts.

    Raises InvalidRequest for more texts than a request may hold.
    """
    most = context.limits.embedding.max_texts
    if len(texts) > most:
        raise InvalidRequest(f"A request may hold {most} texts; send fewer.", param=field)
    work = protocol.EmbeddingJob(
        id=new_task_id(),
        texts=tuple(texts),
        query=query,
        prompt_name=prompt_name,
        dimensions=dimensions,
        stream=stream,
        truncate=coalesce(truncate, context.model_settings.embedding.truncate, False),
    )
    return context.job(work, timeout=timeout)
