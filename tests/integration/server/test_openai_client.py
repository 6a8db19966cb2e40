"""The official client against a real server with real workers (fixture ``server``)."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

MODELS = ["demo-echo", "demo-text"]


@pytest.fixture
def client(server: Any) -> Iterator[openai.OpenAI]:
    url, key = f"{server.url}/v1", server.key
    with openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=60) as client:
        yield client


def test_models_are_listed(client: openai.OpenAI) -> None:
    names = {model.id for model in client.models.list()}
    assert names >= set(MODELS)
    assert client.models.retrieve("demo-echo").object == "model"


@pytest.mark.parametrize("model", MODELS)
def test_chat_answers(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "a b c"}], max_tokens=6, temperature=0
    )
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert 1 <= answer.usage.completion_tokens <= 6
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("model", MODELS)
def test_chat_stream_is_the_whole_answer(client: openai.OpenAI, model: str) -> None:
    asked: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": "a b c"}],
        "max_tokens": 6,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert [reason for reason in reasons if reason] == [whole.choices[0].finish_reason]
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


@pytest.mark.parametrize("model", MODELS)
def test_completions_answer(client: openai.OpenAI, model: str) -> None:
    whole = client.completions.create(model=model, prompt="a b c", max_tokens=5, temperature=0)
    stream = client.completions.create(
        model=model, prompt="a b c", max_tokens=5, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text


def test_chat_takes_an_answer_back_as_a_message(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "a b"}]
    first = client.chat.completions.create(model="demo-echo", messages=messages, max_tokens=2)
    messages += [first.choices[0].message, {"role": "user", "content": "again"}]
    second = client.chat.completions.create(model="demo-echo", messages=messages, max_tokens=2)
    assert second.choices[0].message.content == "again again"


def test_logprobs_are_answered(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo-text",
        messages=[{"role": "user", "content": "a"}],
        max_tokens=3,
        logprobs=True,
        top_logprobs=2,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    assert all(len(each.top_logprobs) == 2 for each in logprobs.content)


def test_errors_are_those_of_the_client(client: openai.OpenAI) -> None:
    ask = client.chat.completions.create
    messages: list[Any] = [{"role": "user", "content": "a"}]
    with pytest.raises(openai.NotFoundError) as missing:
        ask(model="nope", messages=messages)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        ask(model="demo-echo", messages=messages, store=True)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "store")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="nonsense").models.list()


def test_stream_that_is_refused_raises_before_it_begins(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="demo-text", prompt="a " * 5000, max_tokens=5, stream=True)
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.request_id


@pytest.mark.parametrize("model", MODELS)
def test_response_is_kept_and_gone_on_with(client: openai.OpenAI, model: str) -> None:
    first = client.responses.create(model=model, input="a b", max_output_tokens=2)
    assert first.output[0].type == "message"
    stream = client.responses.create(
        model=model, input="c", previous_response_id=first.id, max_output_tokens=3, stream=True
    )
    told = list(stream)
    last: Any = told[-1]
    assert last.type in ("response.completed", "response.incomplete")
    second = last.response
    text = "".join(each.delta for each in told if each.type == "response.output_text.delta")
    assert client.responses.retrieve(second.id).output_text == second.output_text == text
    for made in (first, second):
        client.responses.delete(made.id)


LOOK: Any = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {
            "type": "object",
            "properties": {"at": {"enum": ["sea", "hill"]}},
            "required": ["at"],
            "additionalProperties": False,
        },
    },
}


def test_tools_are_called_when_they_have_to_be(client: openai.OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "look"}}
    asked: Any = {
        "model": "demo-text",
        "messages": [{"role": "user", "content": "where?"}],
        "tools": [LOOK],
        "max_tokens": 200,
    }
    choice = client.chat.completions.create(**asked, tool_choice=named).choices[0]
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls or []
    assert json.loads(call.function.arguments)["at"] in ("sea", "hill")
    result = {"role": "tool", "tool_call_id": call.id, "content": "blue"}
    history = [*asked["messages"], choice.message.model_dump(), result]
    again = client.chat.completions.create(**{**asked, "messages": history, "max_tokens": 4})
    assert again.choices[0].finish_reason in ("stop", "length", "tool_calls")
    with pytest.raises(openai.BadRequestError, match="made to call a tool"):
        client.chat.completions.create(**{**asked, "model": "demo-echo"}, tool_choice="required")
