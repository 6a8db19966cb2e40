"""The embedding engine: batches by tokens, refusals, memory that runs out, files that are wrong."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.cuda_errors import TWO_OUT_OF_MEMORY_ERRORS
from tests.support.embedding_harness import EmbeddingHarness, vectors_of
from tests.support.engine_runs import finals, run_to_end, step_until, submit
from tests.support.models import embedding
from workers.engines.base import Refused
from workers.engines.batch_limit import BatchLimit
from workers.protocol import Cancelled, EmbeddingDone, EmbeddingJob, Failed, Started
from workers.protocol.bounds import MOST_VECTOR_BYTES

TRANSFORMER = {"type": "x.Transformer", "path": ""}
DENSE = {"in_features": 32, "out_features": 16}


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddingHarness]:
    folder = tmp_path_factory.mktemp("embedding") / "model"
    harness = EmbeddingHarness(embedding.make(folder, prompts={"query": "q: "}))
    yield harness
    harness.engine.close()


def job(name: str, *texts: str, **fields: Any) -> EmbeddingJob:
    return EmbeddingJob(id=name, texts=texts, **fields)


def refusal(harness: EmbeddingHarness, *texts: str, **fields: Any) -> Refused:
    with pytest.raises(Refused) as refused:
        harness.engine.prepare(job("a", *texts, **fields))
    return refused.value


def test_batches_hold_texts_of_several_requests(
    harness: EmbeddingHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []
    usual = harness.engine._compute

    def compute(batch: Any) -> Any:
        shapes.append(tuple(sorted(len(text.tokens) for text in batch)))
        return usual(batch)

    monkeypatch.setattr(harness.engine, "_compute", compute)
    monkeypatch.setattr(harness.engine, "_step_tokens", 64)
    jobs = [job("a", "x", "dict " * 9, "y"), job("b", "z", "class " * 9)]
    events = run_to_end(harness.engine, *jobs)
    assert all(len(shape) * max(shape) <= 64 or len(shape) == 1 for shape in shapes)
    assert shapes[0] == (3, 3, 3)  # the short ones of both requests
    found = finals(events)
    assert [type(found[name]) for name in "ab"] == [EmbeddingDone, EmbeddingDone]
    assert [event.id for event in events if isinstance(event, Started)] == ["a", "b"]
    done = found["a"]
    assert isinstance(done, EmbeddingDone)
    assert np.abs(vectors_of(done) - harness.embed(jobs[0].texts)).max() < 1e-5


def test_cancelled_request_ends_between_batches(
    harness: EmbeddingHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness.engine, "_step_tokens", 1)
    submit(harness.engine, job("a", *["text"] * 5), job("b", "text"))
    step_until(harness.engine, lambda events: events)
    harness.engine.cancel("a")
    found = finals(run_to_end(harness.engine))
    assert isinstance(found["a"], Cancelled)
    assert isinstance(found["b"], EmbeddingDone)


def test_text_that_is_too_long_is_refused_with_its_place(harness: EmbeddingHarness) -> None:
    refused = refusal(harness, "short", "word " * 300)
    assert (refused.code, refused.param) == ("CONTEXT_LENGTH_EXCEEDED", "input[1]")
    assert refused.details["max_context"] == harness.ready.max_context == 100


def test_unknown_prompt_is_refused_with_those_that_there_are(harness: EmbeddingHarness) -> None:
    refused = refusal(harness, "text", prompt_name="passage")
    assert (refused.code, refused.param) == ("INVALID_REQUEST", "prompt_name")
    assert refused.details == {"prompts": ["query"]}


def test_dimensions_beyond_the_model_are_refused(harness: EmbeddingHarness) -> None:
    assert refusal(harness, "text", dimensions=embedding.WIDTH + 1).param == "dimensions"


def test_vectors_beyond_one_event_are_refused(harness: EmbeddingHarness) -> None:
    most = MOST_VECTOR_BYTES // (4 * embedding.WIDTH)
    assert refusal(harness, *["x"] * (most + 1)).param == "input"


@pytest.mark.parametrize(
    "error", TWO_OUT_OF_MEMORY_ERRORS.values(), ids=list(TWO_OUT_OF_MEMORY_ERRORS)
)
def test_out_of_memory_is_tried_again_in_smaller_batches(
    harness: EmbeddingHarness, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(harness.engine, "_limit", BatchLimit(256))
    expected = harness.embed(["x"] * 6)
    usual = harness.engine._compute

    def compute(batch: Any) -> Any:
        if len(batch) > 2:
            raise error
        return usual(batch)

    monkeypatch.setattr(harness.engine, "_compute", compute)
    assert np.abs(harness.embed(["x"] * 6) - expected).max() < 1e-5

    def never(_: Any) -> Any:
        raise error

    monkeypatch.setattr(harness.engine, "_compute", never)
    found = finals(run_to_end(harness.engine, job("a", "x", "y"), job("b", "z")))
    assert {type(each) for each in found.values()} == {Failed}
    assert {getattr(each, "code", "") for each in found.values()} == {"OUT_OF_MEMORY"}


@pytest.mark.parametrize(
    ("file", "value", "word"),
    [
        ("modules.json", [TRANSFORMER, {"type": "x.CNN", "path": "1_Pooling"}], "CNN"),
        ("modules.json", [{**TRANSFORMER, "path": "0_Transformer"}], "own folder"),
        ("modules.json", {"no": "list"}, "modules.json"),
        ("modules.json", [TRANSFORMER, {"type": "x.Pooling", "path": ".."}], "modules.json"),
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "Pooling"),
        ("2_Dense/config.json", {"in_features": 7, "out_features": 16}, "Linear"),
        ("2_Dense/config.json", {**DENSE, "use_residual": True}, "residual"),
        ("sentence_bert_config.json", {"max_seq_length": "long"}, "sentence_bert_config.json"),
        ("config_sentence_transformers.json", {"prompts": {"a": 1}}, "config_sentence"),
    ],
)
def test_malformed_layout_is_refused(tmp_path: Path, file: str, value: Any, word: str) -> None:
    folder = embedding.make(tmp_path / "model", dense=((16, "activation.Tanh"),))
    (folder / file).write_text(json.dumps(value))
    with pytest.raises(Refused, match=word) as refused:
        EmbeddingHarness(folder)
    assert refused.value.code == "MODEL_LOAD_FAILED"
