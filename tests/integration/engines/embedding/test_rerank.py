"""Scores equal those of sentence-transformers' CrossEncoder: families, activations, cut pairs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.embedding_harness import EmbeddingHarness
from tests.support.engine_runs import run_to_end
from tests.support.models import embedding
from workers.engines.base import Refused
from workers.protocol import EmbeddingDone, EmbeddingJob

QUERY = "What does the parser return?"
TEXTS = [
    "A class is a type.",
    "dict() -> new empty dictionary",
    "",
    "Return the path " * 8,
    "UPPER and lower, with \N{GRINNING FACE} and  spaces ",
]
_IDENTITY = "torch.nn.modules.linear.Identity"


def check(harness: EmbeddingHarness) -> None:
    scores = harness.rank(QUERY, TEXTS)
    assert np.abs(scores - harness.expected_scores(QUERY, TEXTS)).max() < 1e-4
    alone = [harness.rank(QUERY, [text])[0] for text in TEXTS]
    assert np.abs(scores - alone).max() < 1e-5  # whatever runs beside it


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert", "qwen3", "xlm-roberta"])
def test_rerank_scores_of_families_equal_the_library(tmp_path: Path, family: str) -> None:
    check(EmbeddingHarness(embedding.make_reranker(tmp_path / "model", family)))


@pytest.mark.parametrize(
    "fields",
    [
        {"config": {"sbert_ce_default_activation_function": _IDENTITY}},
        {"config": {"sentence_transformers": {"activation_fn": _IDENTITY}}},
        {"own": {"activation_fn": _IDENTITY}},
        {"own": {"activation_fn": "somebody.elses.Code"}},
        {"own": {"prompts": {"q": "Find: "}, "default_prompt_name": "q"}},
    ],
    ids=lambda value: "-".join([*value, *next(iter(value.values()))]),
)
def test_rerank_activation_and_prompt_are_those_of_the_files(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    check(EmbeddingHarness(embedding.make_reranker(tmp_path / "model", **fields)))


def test_rerank_cuts_pairs_as_the_library_does_and_says_which(tmp_path: Path) -> None:
    harness = EmbeddingHarness(embedding.make_reranker(tmp_path / "model"))
    texts = ["short", "Return the path " * 99]
    job = EmbeddingJob(id="job", texts=tuple(texts), query=QUERY, truncate=True)
    done = run_to_end(harness.engine, job)[-1]
    assert isinstance(done, EmbeddingDone)
    assert done.cut == (1,)
    scores = np.frombuffer(done.vectors, "<f4")
    assert np.abs(scores - harness.expected_scores(QUERY, texts)).max() < 1e-4
    with pytest.raises(Refused, match="The query is read with each document") as refused:
        harness.rank(QUERY, texts)
    assert refused.value.param == "documents[1]"


def test_rerank_of_a_classifier_with_more_labels_is_refused(tmp_path: Path) -> None:
    folder = embedding.make_reranker(tmp_path / "model", labels=3)
    with pytest.raises(Refused, match="more than one label"):
        EmbeddingHarness(folder)


def test_rerank_activation_that_torch_lacks_is_refused(tmp_path: Path) -> None:
    folder = embedding.make_reranker(tmp_path / "model", own={"activation_fn": "torch.hub.load"})
    with pytest.raises(Refused, match="activation load"):
        EmbeddingHarness(folder)


def test_rerank_query_and_model_must_fit_each_other(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="makes scores, not vectors"):
        EmbeddingHarness(embedding.make_reranker(tmp_path / "reranker")).embed(["a"])
    with pytest.raises(Refused, match="makes vectors, not scores"):
        EmbeddingHarness(embedding.make(tmp_path / "embedder")).rank("q", ["a"])
