"""These functions describe vectors and their usage in an InferenceResponse."""

import asyncio
import sys
from array import array
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import msgspec

from workers import protocol

_FLOAT_BYTES = 4
_FLOATS_AT_ONCE = 16_384  #: about a millisecond of encoding

_json = msgspec.json.Encoder()


def vector_bytes(done: protocol.EmbeddingDone) -> Iterator[bytes]:
    """Yield each text's vector as little-endian float32."""
    size = _FLOAT_BYTES * done.dimensions
    return (done.vectors[at : at + size] for at in range(0, len(done.vectors), size))


def floats(vector: bytes) -> list[float]:
    """Return the numbers of a vector of little-endian float32."""
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()


def embedding_result(work: protocol.EmbeddingJob, done: protocol.EmbeddingDone) -> dict[str, Any]:
    """Describe the vectors, or the scores of a query's job, in the order of the texts."""
    if work.query is not None:
        return {"scores": floats(done.vectors)}
    vectors = [floats(vector) for vector in vector_bytes(done)]
    return {"embeddings": vectors, "dimensions": done.dimensions}


async def encoded_result(
    work: protocol.EmbeddingJob, done: protocol.EmbeddingDone
) -> dict[str, Any]:
    """Describe the same as ``embedding_result``; the event loop serves others in between."""
    if work.query is not None:
        return embedding_result(work, done)
    return {"embeddings": await encoded_vectors(done), "dimensions": done.dimensions}


async def encoded_vectors(
    done: protocol.EmbeddingDone, *, base64: bool = False
) -> list[msgspec.Raw]:
    """Return each vector as JSON, numbers or base64; the event loop serves others in between."""
    found, since = [], 0
    for vector in vector_bytes(done):
        encoded = b'"%b"' % b64encode(vector) if base64 else _json.encode(floats(vector))
        found.append(msgspec.Raw(encoded))
        since += done.dimensions
        if since >= _FLOATS_AT_ONCE:
            since = 0
            await asyncio.sleep(0)
    return found


def embedding_usage(final: protocol.EmbeddingDone | protocol.Cancelled) -> dict[str, Any]:
    """Count what is charged: tokens."""
    return {"prompt_tokens": final.prompt_tokens, "total_tokens": final.prompt_tokens}
