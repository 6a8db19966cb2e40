"""Requests to an upstream on behalf of a job."""

from typing import Any

import pytest

from bitinglip.upstreams.request import request_of
from bitinglip.wire.text.fields import MAX_TOKENS
from workers.engines.base import Refused
from workers.protocol import ChatMessage, Grammar, Sampling, TextJob, Tool, ToolCall

SAID = (ChatMessage("system", "be brief"), ChatMessage("user", "hello", name="me"))
PLAIN = Sampling(max_tokens=5)


def asked(**fields: Any) -> dict[str, Any]:
    fields = {"messages": SAID, "sampling": PLAIN, **fields}
    return request_of(TextJob(id="j", **fields), "there").body


def test_request_of_a_chat_has_what_differs_from_the_defaults() -> None:
    request = request_of(TextJob(id="j", messages=SAID, sampling=PLAIN), "there")
    assert request.path == "chat/completions"
    assert request.body == {
        "model": "there",
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
        "top_p": 1.0,
        "max_tokens": 5,
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "hello", "name": "me"},
        ],
    }


def test_request_of_a_prompt_is_a_completion() -> None:
    job = TextJob(id="j", prompt="once", sampling=Sampling(max_tokens=MAX_TOKENS))
    request = request_of(job, "there")
    assert (request.path, request.body["prompt"]) == ("completions", "once")
    assert "max_tokens" not in request.body
    many = TextJob(id="j", prompts=("a", (1, 2)), n=2, sampling=PLAIN)
    assert request_of(many, "m").body["prompt"] == ["a", [1, 2]]
    assert request_of(many, "m").body["n"] == 2
    bare = TextJob(id="j", prompt="once", sampling=PLAIN, special_tokens=False)
    assert request_of(bare, "m").body["add_special_tokens"] is False


def test_request_passes_all_sampling_on() -> None:
    given: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": -0.3,
        "seed": 7,
        "min_tokens": 2,
        "ignore_eos": True,
    }
    sampling = Sampling(
        max_tokens=5, stop=("x",), stop_token_ids=(3,), logit_bias={1: 2.0}, **given
    )
    body = asked(sampling=sampling)
    own = {"stop": ["x"], "stop_token_ids": [3], "logit_bias": {"1": 2.0}}
    assert {**given, **own}.items() <= body.items()


def test_request_passes_tools_and_their_calls_on() -> None:
    call = ToolCall(id="c1", name="look", arguments='{"at": 1}')
    messages = (
        ChatMessage("assistant", "", tool_calls=(call,), reasoning="hm"),
        ChatMessage("tool", "seen", tool_call_id="c1"),
    )
    tool = Tool(name="look", description="d", parameters={"type": "object"}, strict=True)
    body = asked(messages=messages, tools=(tool,), tool_choice="look", parallel_tool_calls=False)
    assert body["tools"][0]["function"] == {
        "name": "look",
        "description": "d",
        "parameters": {"type": "object"},
        "strict": True,
    }
    assert body["tool_choice"] == {"type": "function", "function": {"name": "look"}}
    assert body["parallel_tool_calls"] is False
    first, second = body["messages"]
    assert (first["content"], first["reasoning_content"]) == (None, "hm")
    assert first["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"at": 1}'}
    assert second == {"role": "tool", "content": "seen", "tool_call_id": "c1"}
    assert asked(tools=(tool,), tool_choice="required")["tool_choice"] == "required"


def test_request_passes_forms_of_json_and_template_variables_on() -> None:
    schema = Grammar(kind="json_schema", source='{"type": "object"}', strict=True)
    made = {"name": "answer", "schema": {"type": "object"}, "strict": True}
    assert asked(grammar=schema)["response_format"] == {"type": "json_schema", "json_schema": made}
    form = asked(grammar=Grammar(kind="json_object", source=""))["response_format"]
    assert form == {"type": "json_object"}
    assert asked(template_kwargs={"enable_thinking": False})["chat_template_kwargs"] == {
        "enable_thinking": False
    }


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"continue_final": True}, "continue_final_message"),
        ({"generation_prompt": False}, "add_generation_prompt"),
        ({"drop_turns": True}, "truncation"),
        ({"count_only": True}, None),
        ({"sampling": Sampling(max_tokens=1, logprobs=0)}, "logprobs"),
        ({"sampling": Sampling(max_tokens=1, typical_p=0.5)}, "typical_p"),
        ({"grammar": Grammar(kind="regex", source="a", param="guided_regex")}, "guided_regex"),
        (
            {"messages": None, "prompt": "p", "grammar": Grammar(kind="json_object", source="")},
            "response_format",
        ),
    ],
)
def test_request_that_no_field_can_ask_for_is_refused_by_name(
    fields: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(Refused) as refused:
        asked(**fields)
    assert (refused.value.code, refused.value.param) == ("UNSUPPORTED_PARAMETER", param)
