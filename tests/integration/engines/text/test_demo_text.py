"""Tests that demo-text answers greedily, through the engine, as it was taught."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import safe_open

from model_store.demo.text import make_text_model
from scripts.demo_text.__main__ import answers_digest
from tests.support.text_harness import load, run
from workers.engines.text.engine import TextEngine
from workers.protocol import ChatMessage, Sampling, TextJob

BITINGLIP, PULL = "What is BitingLip?", "How do I pull a model?"
ANSWERS = {
    BITINGLIP: "private inference server",
    PULL: "bitinglip models pull",
    "how can I make a key": "bitinglip keys create",
    "How do I run it in Docker?": "docker compose",
    "What is the capital of France?": "only BitingLip",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo-text")
    make_text_model(folder)
    return folder


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[TextEngine]:
    engine, _ = load(model, max_context=512, kv_cache_bytes=4 << 20)
    yield engine
    engine.close()


def chat(name: str, *said: str) -> TextJob:
    """Return a chat in which the user has said the first, the third, ... of these."""
    roles = ("user", "assistant") * len(said)
    messages = tuple(ChatMessage(role, text) for role, text in zip(roles, said, strict=False))
    return TextJob(id=name, messages=messages, sampling=Sampling(max_tokens=120, temperature=0))


def test_demo_text_answers_what_the_manual_says(engine: TextEngine) -> None:
    done = run(engine, *(chat(question, question) for question in ANSWERS))
    assert {name: ANSWERS[name] in end.text for name, end in done.items()} == dict.fromkeys(
        ANSWERS, True
    )
    assert {end.choices[0].finish_reason for end in done.values()} == {"stop"}


def test_demo_text_answers_the_last_question_of_a_conversation(engine: TextEngine) -> None:
    first = run(engine, chat("first", BITINGLIP))["first"].text
    second = run(engine, chat("second", BITINGLIP, first, PULL))["second"].text
    assert ANSWERS[PULL] in second
    assert ANSWERS[BITINGLIP] not in second


def test_demo_text_is_trained_on_the_answers_as_they_are(model: Path) -> None:
    """After a change of the answers: ``python -m scripts.demo_text``, in some minutes."""
    with safe_open(model / "model.safetensors", framework="np") as file:
        assert file.metadata()["answers"] == answers_digest()
    assert (model / "model.safetensors").stat().st_size < 4_000_000
