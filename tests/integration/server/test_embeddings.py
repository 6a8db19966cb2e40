"""Embeddings from a real server: both surfaces, tasks, refusals."""

import base64
from typing import Any

import numpy as np
import openai
import pytest

from tests.support.batch_client import begin, ended, line, results
from tests.support.confinement import check_whole
from tests.support.server import Server
from tests.support.sse import events_of
from tests.support.task_client import await_status

NATIVE = "/api/v1/inference/embeddings"
OPENAI = "/v1/embeddings"
TEXTS = ["The parser reads the arguments.", "An event loop runs tasks.", "arguments of the parser"]
ASKED: dict[str, Any] = {"model": "demo-embedding", "input": TEXTS}


def test_embeddings_are_near_each_other_for_texts_that_share_words(server: Server) -> None:
    with server.client() as client:
        answer = client.post(NATIVE, json=ASKED).json()
    vectors = np.asarray(answer["result"]["embeddings"])
    assert vectors.shape == (3, answer["result"]["dimensions"])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1])
    assert vectors[0] @ vectors[2] > vectors[1] @ vectors[2]
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 12
    check_whole(server.worker("demo-embedding"))


def test_openai_embeddings_are_base64_of_the_same_numbers(server: Server) -> None:
    with server.client() as client:
        floats = client.post(OPENAI, json=ASKED).json()
        coded = client.post(OPENAI, json={**ASKED, "encoding_format": "base64"}).json()
    assert set(floats) == {"object", "data", "model", "usage"}
    for number, (one, other) in enumerate(zip(floats["data"], coded["data"], strict=True)):
        assert one["index"] == other["index"] == number
        numbers = np.frombuffer(base64.b64decode(other["embedding"]), "<f4")
        assert np.array_equal(numbers, np.asarray(one["embedding"], np.float32))


def test_openai_client_gets_embeddings_with_its_defaults(server: Server) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key)
    found = client.embeddings.create(model="demo-embedding", input="one text", dimensions=8)
    assert len(found.data) == 1
    assert np.linalg.norm(found.data[0].embedding) == pytest.approx(1)
    assert len(found.data[0].embedding) == 8


def test_embedding_task_and_stream_end_in_the_same_vectors(server: Server) -> None:
    with server.client() as client:
        expected = client.post(NATIVE, json=ASKED).json()["result"]
        accepted = client.post(NATIVE, json={**ASKED, "async": True})
        assert accepted.status_code == 202
        task = await_status(client, accepted.json()["task_id"], "completed")
        assert task["result"] == expected
        assert task["kind"] == "embedding"
        events = events_of(client.post(NATIVE, json={**ASKED, "stream": True}).text)
    name, data = events[-1]
    assert name == "completed"
    assert data["result"] == expected


@pytest.mark.parametrize(
    ("changed", "code", "param"),
    [
        ({"input": []}, "INVALID_REQUEST", "input"),
        ({"input": [1, 2, 3]}, "INVALID_REQUEST", "input"),
        ({"input": [[1, 2], [3]]}, "INVALID_REQUEST", "input"),
        ({"input": ["a", None]}, "INVALID_REQUEST", "input[1]"),
        ({"input": {"text": "a"}}, "INVALID_REQUEST", "input"),
        ({"input": ["a"] * 2049}, "INVALID_REQUEST", "input"),
        ({"input": ["a", "word " * 2000]}, "CONTEXT_LENGTH_EXCEEDED", "input[1]"),
        ({"dimensions": 65}, "INVALID_REQUEST", "dimensions"),
        ({"dimensions": 0}, "INVALID_REQUEST", "dimensions"),
        ({"prompt_name": "passage"}, "INVALID_REQUEST", "prompt_name"),
        ({"model": "demo-text"}, "INVALID_REQUEST", "model"),
        ({"input": ["a"] * 257, "async": True}, "INVALID_REQUEST", "input"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_embedding_requests_that_are_wrong_name_the_field(
    server: Server, changed: dict[str, Any], code: str, param: str
) -> None:
    with server.client() as client:
        answer = client.post(NATIVE, json={**ASKED, **changed})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param)


def test_token_ids_are_refused_with_the_switch_of_the_client_that_sends_them(
    server: Server,
) -> None:
    with server.client() as client:
        answer = client.post(OPENAI, json={**ASKED, "input": [[57668, 53901]]})
    assert answer.status_code == 400
    assert "check_embedding_ctx_length=False" in answer.json()["error"]["message"]


def test_empty_text_has_a_vector_and_truncate_reads_the_beginning(server: Server) -> None:
    with server.client() as client:
        empty = client.post(OPENAI, json={**ASKED, "input": ""})
        long = client.post(OPENAI, json={**ASKED, "input": "word " * 2000, "truncate": True})
        listed = client.get("/api/v1/models", params={"type": "embedding"}).json()
    assert len(empty.json()["data"]) == 1
    assert long.json()["usage"]["prompt_tokens"] == 512
    assert [model["name"] for model in listed["data"]] == ["demo-embedding"]


def test_embedding_batch_has_the_vectors_of_requests(server: Server) -> None:
    asked = {"model": "demo-embedding", "input": "one text", "dimensions": 8}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key) as client:
        alone = client.embeddings.create(model="demo-embedding", input="one text", dimensions=8)
        batch = ended(client, begin(client, [line("a", OPENAI, asked)], endpoint=OPENAI))
        (found,) = results(client, batch.output_file_id)
    vector = found["response"]["body"]["data"][0]["embedding"]
    assert vector == pytest.approx(alone.data[0].embedding)
