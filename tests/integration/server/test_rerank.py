"""Reranking from a real server: the answer's shape, ties, bounds, refusals by field."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.models import embedding
from tests.support.server import Server

ROUTE = "/v1/rerank"
DOCUMENTS = ["The parser reads the arguments.", {"text": "An event loop."}, "The parser reads."]
ASKED: dict[str, Any] = {"model": "reranker", "query": "the parser", "documents": DOCUMENTS}


@pytest.fixture(scope="module")
def client(
    shared_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """Provide a client of the shared server, which has a reranker until these tests are over."""
    folder = embedding.make_reranker(tmp_path_factory.mktemp("reranker") / "model")
    with shared_server.client() as client:
        made = client.post("/api/v1/models/import", json={"path": str(folder), "name": "reranker"})
        assert made.status_code == 201, made.text
        yield client
        assert client.delete("/api/v1/models/reranker").status_code == 204


def test_rerank_answers_with_the_best_first(client: httpx.Client) -> None:
    whole = client.post(ROUTE, json=ASKED).json()
    scores = [each["relevance_score"] for each in whole["results"]]
    assert scores == sorted(scores, reverse=True)
    assert sorted(each["index"] for each in whole["results"]) == [0, 1, 2]
    by_index = {each["index"]: each["document"] for each in whole["results"]}
    assert by_index[1] == DOCUMENTS[1]
    assert by_index[2] == {"text": DOCUMENTS[2]}
    assert whole["usage"]["prompt_tokens"] == whole["usage"]["total_tokens"] > 12
    fewer = client.post(ROUTE, json={**ASKED, "top_n": 2, "return_documents": False}).json()
    assert fewer["results"] == [
        {"index": each["index"], "relevance_score": each["relevance_score"]}
        for each in whole["results"][:2]
    ]
    unlimited = client.post(ROUTE, json={**ASKED, "top_n": 99, "rank_fields": ["text"]})
    assert unlimited.json()["results"] == whole["results"]
    assert unlimited.headers["x-ignored-fields"] == "rank_fields"
    kinds = client.get("/api/v1/models/reranker").json()
    assert (kinds["type"], kinds["capabilities"]) == ("embedding", ["rerank"])


def test_rerank_keeps_equal_documents_in_order_and_says_what_it_cut(client: httpx.Client) -> None:
    documents = ["The parser reads the path. " * 99] * 2 + ["A type."]
    answer = client.post(ROUTE, json={**ASKED, "documents": documents, "truncate": True}).json()
    equal = [each for each in answer["results"] if each["index"] < 2]
    assert [each["index"] for each in equal] == [0, 1]
    assert [each.get("truncated") for each in equal] == [True, True]
    assert "truncated" not in next(each for each in answer["results"] if each["index"] == 2)


@pytest.mark.parametrize(
    ("changed", "code", "param"),
    [
        ({"query": ""}, "invalid_value", "query"),
        ({"query": ["a"]}, "invalid_value", "query"),
        ({"documents": []}, "invalid_value", "documents"),
        ({"documents": "a"}, "invalid_value", "documents"),
        ({"documents": ["a", 1]}, "invalid_value", "documents[1]"),
        ({"documents": [{"title": "a"}]}, "invalid_value", "documents[0]"),
        ({"documents": ["a"] * 2049}, "invalid_value", "documents"),
        ({"documents": ["a", "word " * 200]}, "context_length_exceeded", "documents[1]"),
        ({"top_n": -1}, "invalid_value", "top_n"),
        ({"model": "demo-embedding"}, "invalid_value", "model"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_rerank_requests_that_are_wrong_name_the_field(
    client: httpx.Client, changed: dict[str, Any], code: str, param: str
) -> None:
    answer = client.post(ROUTE, json={**ASKED, **changed})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param)


def test_rerank_model_has_no_embeddings(client: httpx.Client) -> None:
    for path in ("/v1/embeddings", "/api/v1/inference/embeddings"):
        answer = client.post(path, json={"model": "reranker", "input": "a"})
        assert answer.status_code == 400
        assert "/v1/rerank" in answer.json()["error"]["message"]
