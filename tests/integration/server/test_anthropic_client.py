"""The official Anthropic client against a real server with real workers (fixture ``server``)."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

TURNS: list[Any] = [{"role": "user", "content": "a b c"}]


@pytest.fixture
def client(server: Any) -> Iterator[Any]:
    import anthropic  # takes seconds

    with anthropic.Anthropic(
        base_url=server.url, api_key=server.key, max_retries=0, timeout=60
    ) as client:
        yield client


@pytest.mark.parametrize("model", ["demo-echo", "demo-text"])
def test_count_of_tokens_is_what_the_prompt_has(client: Any, model: str) -> None:
    count = client.messages.count_tokens(model=model, messages=TURNS, system="be kind")
    message = client.messages.create(model=model, max_tokens=2, messages=TURNS, system="be kind")
    usage = message.usage
    assert count.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_stop_sequence_that_was_met_is_named(client: Any) -> None:
    asked: dict[str, Any] = {
        "model": "demo-echo",
        "max_tokens": 6,
        "messages": TURNS,
        "stop_sequences": ["never", "c"],
    }
    message = client.messages.create(**asked)
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "c")
    with client.messages.stream(**asked) as stream:
        assert stream.get_final_text() == message.content[0].text == "a b "
        assert stream.get_final_message().stop_sequence == "c"


def test_prefilled_message_is_continued_by_the_model(client: Any) -> None:
    begun = [*TURNS, {"role": "assistant", "content": "well"}]
    plain = client.messages.count_tokens(model="demo-text", messages=TURNS).input_tokens
    prefilled = client.messages.count_tokens(model="demo-text", messages=begun).input_tokens
    assert prefilled > plain
    message = client.messages.create(
        model="demo-text", max_tokens=3, messages=begun, extra_body={"temperature": 0}
    )
    assert message.usage.output_tokens <= 3


def test_message_is_held_to_a_schema(client: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    message = client.messages.create(
        model="demo-text",
        max_tokens=60,
        messages=TURNS,
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    assert json.loads(message.content[0].text) == {"a": "x"}
