"""Reranking takes the request that Cohere, Jina and vLLM take; our field beside it is ``truncate``.

A cross-encoder reads the query with each document and scores how well it answers.
"""

from typing import Annotated, Any

import msgspec
from pydantic import Field, WithJsonSchema

from bitinglip.errors import InvalidRequest
from bitinglip.scheduling.event_log import EventLog
from bitinglip.scheduling.job import Job
from bitinglip.wire.body import ModelName
from bitinglip.wire.embedding.job import PromptName, embedding_job
from bitinglip.wire.embedding.result import embedding_usage, floats
from bitinglip.wire.job_context import JobContext
from bitinglip.wire.openai_body import Label, OpenAIRequest
from bitinglip.wire.openai_view import OpenAIView
from workers import protocol

_json = msgspec.json.Encoder()

_TEXT = {"type": "string"}
_DOCUMENT = {"type": "object", "properties": {"text": _TEXT}, "required": ["text"]}
#: ``documents_of`` checks them.
Documents = Annotated[
    Any, WithJsonSchema({"type": "array", "items": {"anyOf": [_TEXT, _DOCUMENT]}, "minItems": 1})
]


class RerankRequest(OpenAIRequest):
    """Asks which documents answer the query best."""

    model: ModelName
    query: Annotated[str, Field(min_length=1)]
    documents: Documents
    #: how many results there are; 0 and more than there are documents stand for all
    top_n: Annotated[int, Field(ge=0)] | None = None
    return_documents: bool | None = None  #: true unless it is false
    prompt_name: PromptName | None = None
    truncate: bool | None = None
    user: Label = None

    def to_job(self, context: JobContext) -> Job:
        """Make the job that this request asks for. Raises InvalidRequest."""
        return embedding_job(
            context,
            documents_of(self.documents),
            query=self.query,
            field="documents",
            prompt_name=self.prompt_name,
            truncate=self.truncate,
        )


def documents_of(value: Any) -> list[str]:
    """Return the texts of documents, each a text or ``{"text": ...}``. Raises InvalidRequest."""
    if not isinstance(value, list) or not value:
        raise InvalidRequest("'documents' must be a list of texts.", param="documents")
    texts: list[str] = []
    for index, document in enumerate(value):
        text = document.get("text") if isinstance(document, dict) else document
        if not isinstance(text, str):
            raise InvalidRequest(
                'Each document must be a text or {"text": ...}.', param=f"documents[{index}]"
            )
        texts.append(text)
    return texts


class RerankView(OpenAIView):
    """Shows the documents with the best scores first; equal ones in their order."""

    def __init__(self, event_log: EventLog, request_id: str, *, request: RerankRequest) -> None:
        super().__init__(event_log, request_id)
        self._request = request

    def body(self) -> bytes:
        done, job = self._event_log.final, self._event_log.job
        assert isinstance(done, protocol.EmbeddingDone)
        answer = {
            "id": f"rerank-{job.id.removeprefix('task-')}",
            "model": job.model,
            "results": self._results(done),
            "usage": embedding_usage(done),
        }
        return _json.encode(answer)

    def _results(self, done: protocol.EmbeddingDone) -> list[dict[str, Any]]:
        scores, cut = floats(done.vectors), frozenset(done.cut)
        best = sorted(range(len(scores)), key=lambda index: -scores[index])
        results = []
        for index in best[: self._request.top_n or None]:
            result: dict[str, Any] = {"index": index, "relevance_score": scores[index]}
            if self._request.return_documents is not False:
                document = self._request.documents[index]
                text = document if isinstance(document, str) else document["text"]
                result["document"] = {"text": text}
            if index in cut:
                result["truncated"] = True  # only the beginning was read
            results.append(result)
        return results
