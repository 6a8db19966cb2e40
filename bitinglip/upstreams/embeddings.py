"""Converts embedding jobs into requests of OpenAI's API, and its answers into vectors. Pure."""

import struct
from base64 import b64decode
from typing import Any

import msgspec

from bitinglip.upstreams.answer import BadAnswer
from bitinglip.upstreams.request import Request
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


class _Answer(msgspec.Struct):
    data: list[_Vector]
    usage: _Usage = msgspec.field(default_factory=_Usage)


def embedding_request(job: EmbeddingJob, model: str) -> Request:
    """Return the request for a job's vectors. Raises Refused for what the API has no field for."""
    if job.query is not None or job.prompt_name is not None:
        field = "query" if job.query is not None else "prompt_name"
        text = f"'{field}' cannot be passed on to the server that this model stands for."
        raise Refused("UNSUPPORTED_PARAMETER", text, param=field)
    body: dict[str, Any] = {"model": model, "input": list(job.texts), "encoding_format": "base64"}
    if job.dimensions is not None:
        body["dimensions"] = job.dimensions
    if job.truncate:  # not OpenAI's own, but BitingLip knows it
        body["truncate"] = True
    return Request("embeddings", body)


def embedding_done(job: EmbeddingJob, data: bytes) -> EmbeddingDone:
    """Return the final event of an answer, which takes a while to read. Raises BadAnswer."""
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
    tokens = min(max(0, answer.usage.prompt_tokens), 2**31 - 1)
    return EmbeddingDone(
        id=job.id, vectors=b"".join(vectors), dimensions=size // 4, prompt_tokens=tokens
    )


def _bytes(vector: _Vector) -> bytes:
    if isinstance(vector.embedding, str):
        return b64decode(vector.embedding, validate=True)
    return struct.pack(f"<{len(vector.embedding)}f", *vector.embedding)
