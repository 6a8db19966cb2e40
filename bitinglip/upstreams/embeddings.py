"""Converts embedding jobs into requests of OpenAI's API, and its answers into vectors. Pure.

With a query, the request is one for scores: that which Cohere, Jina, vLLM and BitingLip take.
"""

import struct
from base64 import b64decode
from typing import Annotated, Any

import msgspec

from bitinglip.upstreams.answer import BadAnswer
from bitinglip.upstreams.request import Request
from bitinglip.work.embedding import EmbeddingTraits
from workers.engines.base import Refused
from workers.protocol import EmbeddingDone, EmbeddingJob

_FORM = "The upstream's answer has another form."
_MOST_DIMENSIONS = 1 << 16


class _Vector(msgspec.Struct):
    index: int
    embedding: (
        str | list[float]
    )  #: base64 of little-endian float32, as it was asked for, or numbers


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    total_tokens: int = 0  #: some tell these alone, of scores


class _Answer(msgspec.Struct):
    data: list[_Vector]
    usage: _Usage = msgspec.field(default_factory=_Usage)


class _Score(msgspec.Struct):
    index: int
    relevance_score: Annotated[float, msgspec.Meta(ge=-1e30, le=1e30)]


class _Ranking(msgspec.Struct):
    results: list[_Score]
    usage: _Usage = msgspec.field(default_factory=_Usage)


def embedding_request(job: EmbeddingJob, model: str) -> Request:
    """Return the request for a job's vectors, or for its scores.

    Raises Refused for what the API has no field for.
    """
    if job.prompt_name is not None:
        text = "'prompt_name' cannot be passed on to the server that this model stands for."
        raise Refused("UNSUPPORTED_PARAMETER", text, param="prompt_name")
    if job.query is not None:
        return _rerank_request(job, job.query, model)
    body: dict[str, Any] = {"model": model, "input": list(job.texts), "encoding_format": "base64"}
    if job.dimensions is not None:
        body["dimensions"] = job.dimensions
    if job.truncate:  # not OpenAI's own, but BitingLip knows it
        body["truncate"] = True
    return Request("embeddings", body)


def _rerank_request(job: EmbeddingJob, query: str, model: str) -> Request:
    body = {"model": model, "query": query, "documents": list(job.texts), "return_documents": False}
    if job.truncate:
        body["truncate"] = True
    return Request("rerank", body)


def embedding_done(job: EmbeddingJob, data: bytes | bytearray) -> EmbeddingDone:
    """Return the final event of an answer, which takes a while to read. Raises BadAnswer."""
    if job.query is not None:
        return _rerank_done(job, data)
    try:
        answer = msgspec.json.decode(data, type=_Answer)
        vectors = [_bytes(each) for each in sorted(answer.data, key=lambda each: each.index)]
    except (ValueError, msgspec.DecodeError, OverflowError) as error:
        raise BadAnswer(_FORM) from error
    if [each.index for each in sorted(answer.data, key=lambda each: each.index)] != [
        *range(len(job.texts))
    ]:
        raise BadAnswer("The upstream's answer has not one vector for each text.")
    size = len(vectors[0])
    if not size or size % 4 or size > 4 * _MOST_DIMENSIONS or {*map(len, vectors)} != {size}:
        raise BadAnswer(_FORM)
    return EmbeddingDone(
        id=job.id,
        vectors=b"".join(vectors),
        dimensions=size // 4,
        prompt_tokens=_tokens(answer.usage, job),
    )


def _rerank_done(job: EmbeddingJob, data: bytes | bytearray) -> EmbeddingDone:
    """Return the scores of an answer in the order of the texts. Raises BadAnswer."""
    try:
        answer = msgspec.json.decode(data, type=_Ranking)
    except (ValueError, msgspec.DecodeError) as error:
        raise BadAnswer(_FORM) from error
    scores = sorted(answer.results, key=lambda each: each.index)
    if [each.index for each in scores] != [*range(len(job.texts))]:
        raise BadAnswer("The upstream's answer has not one score for each text.")
    vectors = struct.pack(f"<{len(scores)}f", *(each.relevance_score for each in scores))
    tokens = _tokens(answer.usage, job)
    return EmbeddingDone(id=job.id, vectors=vectors, dimensions=1, prompt_tokens=tokens)


def _tokens(usage: _Usage, job: EmbeddingJob) -> int:
    """Return the tokens that a server tells, or that the texts are likely to have."""
    told = max(0, usage.prompt_tokens or usage.total_tokens)
    return min(told or max(1, round(EmbeddingTraits(job).cost(0))), 2**31 - 1)


def _bytes(vector: _Vector) -> bytes:
    if isinstance(vector.embedding, str):
        return b64decode(vector.embedding, validate=True)
    return struct.pack(f"<{len(vector.embedding)}f", *vector.embedding)
