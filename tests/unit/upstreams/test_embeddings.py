"""Vectors from other servers: what they are asked for, and what is taken for an answer."""

import json
from base64 import b64encode
from struct import pack

import pytest

from bitinglip.upstreams.answer import BadAnswer
from bitinglip.upstreams.embeddings import embedding_done, embedding_request
from workers.engines.base import Refused
from workers.protocol import EmbeddingJob

JOB = EmbeddingJob(id="e", texts=("one", "two"), dimensions=2)
ONE, TWO = pack("<2f", 0.5, -1), pack("<2f", 2, 0.25)


def answer(*vectors: object, **more: object) -> bytes:
    data = [{"index": n, "embedding": each} for n, each in enumerate(vectors)]
    return json.dumps({"object": "list", "data": data, **more}).encode()


def test_embedding_request_asks_for_what_the_job_wants() -> None:
    path, body, _ = embedding_request(JOB, "there")
    assert path == "embeddings"
    assert body == {
        "model": "there",
        "input": ["one", "two"],
        "encoding_format": "base64",
        "dimensions": 2,
    }
    with pytest.raises(Refused, match="prompt_name"):
        embedding_request(EmbeddingJob(id="e", texts=("a",), prompt_name="p"), "there")


def test_embedding_answer_is_read_in_both_forms_and_any_order() -> None:
    usage = {"prompt_tokens": 7, "total_tokens": 7}
    numbers = answer([0.5, -1.0], [2.0, 0.25], usage=usage)
    texts = [{"index": n, "embedding": b64encode(v).decode()} for n, v in ((1, TWO), (0, ONE))]
    for data in (numbers, json.dumps({"data": texts, "usage": usage}).encode()):
        done = embedding_done(JOB, data)
        assert (done.vectors, done.dimensions, done.prompt_tokens) == (ONE + TWO, 2, 7)
    untold = embedding_done(JOB, answer([0.5, -1.0], [2.0, 0.25]))
    assert untold.prompt_tokens > 0, "they are charged"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"data": []}',
        answer([1.0]),
        answer([1.0], [1.0, 2.0]),
        answer([], []),
        answer("no base64!", "AAAA"),
        answer("AAA=", "AAA="),
        answer([1e300], [1.0]),
        answer([1.0], [1.0]).replace(b'"index": 1', b'"index": 0'),
    ],
)
def test_embedding_answer_of_another_form_is_refused(data: bytes) -> None:
    with pytest.raises(BadAnswer):
        embedding_done(JOB, data)


RANKED = EmbeddingJob(id="e", texts=("one", "two"), query="which", truncate=True)


def ranking(*scores: object, **more: object) -> bytes:
    results = [{"index": n, "relevance_score": each} for n, each in enumerate(scores)]
    return json.dumps({"results": results[::-1], **more}).encode()


def test_rerank_request_asks_for_the_scores_of_all_documents() -> None:
    path, body, _ = embedding_request(RANKED, "there")
    assert path == "rerank"
    assert body == {
        "model": "there",
        "query": "which",
        "documents": ["one", "two"],
        "return_documents": False,
        "truncate": True,
    }


@pytest.mark.parametrize("name", ["prompt_tokens", "total_tokens"])
def test_rerank_answer_is_in_the_order_of_the_texts(name: str) -> None:
    done = embedding_done(RANKED, ranking(0.5, -1, usage={name: 9}))
    assert (done.vectors, done.dimensions, done.prompt_tokens) == (ONE, 1, 9)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"results": []}',
        ranking(1),
        ranking(1, 2, 3),
        ranking(1, "2"),
        ranking(1, 1e300),
        ranking(1, 2).replace(b'"index": 1', b'"index": 0'),
    ],
)
def test_rerank_answer_of_another_form_is_refused(data: bytes) -> None:
    with pytest.raises(BadAnswer):
        embedding_done(RANKED, data)
