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
    path, body = embedding_request(JOB, "there")
    assert path == "embeddings"
    assert body == {
        "model": "there",
        "input": ["one", "two"],
        "encoding_format": "base64",
        "dimensions": 2,
    }
    for field, job in (
        ("query", EmbeddingJob(id="e", texts=("a",), query="q")),
        ("prompt_name", EmbeddingJob(id="e", texts=("a",), prompt_name="p")),
    ):
        with pytest.raises(Refused, match=field):
            embedding_request(job, "there")


def test_embedding_answer_is_read_in_both_forms_and_any_order() -> None:
    usage = {"prompt_tokens": 7, "total_tokens": 7}
    numbers = answer([0.5, -1.0], [2.0, 0.25], usage=usage)
    texts = [{"index": n, "embedding": b64encode(v).decode()} for n, v in ((1, TWO), (0, ONE))]
    for data in (numbers, json.dumps({"data": texts, "usage": usage}).encode()):
        done = embedding_done(JOB, data)
        assert (done.vectors, done.dimensions, done.prompt_tokens) == (ONE + TWO, 2, 7)


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
