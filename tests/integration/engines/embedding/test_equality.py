"""Embeddings equal those of sentence-transformers: families, poolings, prompts, dense layers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.embedding_harness import EmbeddingHarness
from tests.support.models import embedding

TEXTS = [
    "A class is a type.",
    "dict() -> new empty dictionary",
    "",
    "Return the path " * 8,
    "UPPER and lower, with \N{GRINNING FACE} and  spaces ",
]


def check(harness: EmbeddingHarness, **options: Any) -> None:
    vectors = harness.embed(TEXTS, **options)
    assert np.abs(vectors - harness.expected(TEXTS, **options)).max() < 1e-4
    alone = np.concatenate([harness.embed([text], **options) for text in TEXTS])
    assert np.abs(vectors - alone).max() < 1e-5  # whatever runs beside it


@pytest.mark.parametrize("family", embedding.FAMILIES)
def test_embeddings_of_families_equal_the_library(tmp_path: Path, family: str) -> None:
    last = {"pooling_mode_lasttoken": True} if family == "qwen3" else None
    check(EmbeddingHarness(embedding.make(tmp_path / "model", family, pooling=last)))


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode": "cls"},
        {"pooling_mode": "max"},
        {"pooling_mode": "mean_sqrt_len_tokens"},
        {"pooling_mode": "weightedmean"},
        {"pooling_mode": ["mean", "max", "lasttoken"]},
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
    ],
    ids=str,
)
def test_pooling_equals_the_library(tmp_path: Path, pooling: dict[str, Any]) -> None:
    check(EmbeddingHarness(embedding.make(tmp_path / "model", pooling=pooling, normalize=False)))


def test_dense_layers_equal_the_library(tmp_path: Path) -> None:
    layers = ((48, "activation.Tanh"), (16, "linear.Identity"))
    check(EmbeddingHarness(embedding.make(tmp_path / "model", dense=layers)))


@pytest.mark.parametrize("mode", ["mean", "cls", "weightedmean"])
def test_prompts_by_name_equal_the_library(tmp_path: Path, mode: str) -> None:
    prompts = {"query": "Find the code: ", "document": ""}
    pooling = {"pooling_mode": mode, "include_prompt": False}
    folder = embedding.make(
        tmp_path / "model", pooling=pooling, prompts=prompts, default_prompt="query"
    )
    harness = EmbeddingHarness(folder)
    check(harness)
    check(harness, prompt_name="document")
    check(harness, prompt_name="query")


def test_lower_case_equals_the_library(tmp_path: Path) -> None:
    transformer = {"max_seq_length": 100, "do_lower_case": True}
    harness = EmbeddingHarness(embedding.make(tmp_path / "model", transformer=transformer))
    check(harness)
    assert np.array_equal(harness.embed(["CLASS"]), harness.embed(["class"]))


def test_truncated_texts_equal_the_library(tmp_path: Path) -> None:
    harness = EmbeddingHarness(embedding.make(tmp_path / "model"))
    texts = ["Return the path " * 99]
    vectors = harness.embed(texts, truncate=True)
    assert np.abs(vectors - harness.expected(texts)).max() < 1e-4


def test_dimensions_are_the_first_ones_at_unit_length(tmp_path: Path) -> None:
    harness = EmbeddingHarness(embedding.make(tmp_path / "model"))
    expected = harness.expected(TEXTS)[:, :8]
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(harness.embed(TEXTS, dimensions=8) - expected).max() < 1e-4
