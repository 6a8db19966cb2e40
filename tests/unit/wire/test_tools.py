"""Tools, their calls and reasoning on both surfaces: what is sent and what is shown."""

import json
import math
from typing import Any

import pytest

from bitinglip.scheduling.event_log import EventLog
from bitinglip.scheduling.job import Job
from bitinglip.wire.events import NativeView
from bitinglip.wire.text.native import TextGenerationRequest
from bitinglip.wire.text.openai import ChatCompletionRequest
from bitinglip.wire.text.openai_view import ChatView
from tests.unit.wire.test_requests import CHAT, message_of, read, refused
from workers import protocol
from workers.framing import encode_commands

FUNCTION = {"name": "look", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": FUNCTION}
ASK = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
NATIVE = {"model": "m", "messages": [ASK]}
SURFACES = [
    pytest.param(TextGenerationRequest, NATIVE, id="native"),
    pytest.param(ChatCompletionRequest, CHAT, id="chat"),
]
NAMED = {"type": "function", "function": {"name": "look"}}


@pytest.mark.parametrize(("model", "body"), SURFACES)
def test_tools_reach_the_worker(model: Any, body: dict[str, Any]) -> None:
    job = message_of(read(model, body, tools=[TOOL]))
    [tool] = job.tools
    assert (tool.name, tool.parameters, job.tool_choice) == ("look", FUNCTION["parameters"], "auto")
    assert job.parallel_tool_calls
    job = message_of(read(model, body, tools=[TOOL], parallel_tool_calls=False))
    assert not job.parallel_tool_calls
    for choice, expected in (("required", "required"), (NAMED, "look"), ("auto", "auto")):
        assert message_of(read(model, body, tools=[TOOL], tool_choice=choice)).tool_choice == (
            expected
        )
    assert not message_of(read(model, body, tools=[TOOL], tool_choice="none")).tools


@pytest.mark.parametrize(("model", "body"), SURFACES)
def test_tools_that_are_empty_are_accepted(model: Any, body: dict[str, Any]) -> None:
    nothing: list[dict[str, Any]] = [
        {"tools": []},
        {"tools": None},
        {"tool_choice": "auto"},
        {"tool_choice": "none"},
    ]
    for more in nothing:
        assert not message_of(read(model, body, **more)).tools


@pytest.mark.parametrize(("model", "body"), SURFACES)
@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [TOOL], "tool_choice": "elsewhere"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": NAMED}, "tool_choice"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"messages": [ASK, {"role": "robot", "content": "x"}]}, "messages[1].role"),
        ({"messages": [ASK, {"role": "user"}]}, "messages[1]"),
    ],
)
def test_tools_that_are_wrong_are_refused_by_name(
    model: Any, body: dict[str, Any], more: dict[str, Any], param: str
) -> None:
    assert refused(model, body, **more).param == param


@pytest.mark.parametrize(("model", "body"), SURFACES)
@pytest.mark.parametrize("empty", [{}, {"content": None}, {"content": ""}])
def test_tool_turns_of_the_history_reach_the_worker(
    model: Any, body: dict[str, Any], empty: dict[str, Any]
) -> None:
    answer = {"role": "tool", "tool_call_id": "c1", "content": "seen"}
    messages = [ASK, {"role": "assistant", **empty, "tool_calls": [CALL]}, answer]
    _, called, told = message_of(read(model, body, messages=messages)).messages
    [call] = called.tool_calls
    assert (called.content, call.id, call.name, call.arguments) == ("", "c1", "look", '{"a": 1}')
    assert (told.role, told.content, told.tool_call_id) == ("tool", "seen", "c1")


@pytest.mark.parametrize(
    ("arguments", "expected"), [(None, ""), ({"a": 1}, '{"a": 1}'), ("{bad", "{bad"), ("", "")]
)
def test_tool_calls_with_odd_arguments_are_taken_as_they_are(arguments: Any, expected: str) -> None:
    call = {"id": "c1", "index": 0, "function": {"name": "look", "arguments": arguments}}
    messages = [ASK, {"role": "assistant", "tool_calls": [call]}]
    request = read(ChatCompletionRequest, CHAT, messages=messages)
    [taken] = message_of(request).messages[1].tool_calls
    assert taken.arguments == expected
    assert request.ignored() == ["messages.tool_calls.index"]


def test_reasoning_and_its_switches_reach_the_worker() -> None:
    messages = [ASK, {"role": "assistant", "content": "yes", "reasoning_content": "why"}, ASK]
    request = read(ChatCompletionRequest, CHAT, messages=messages, reasoning_effort="none")
    job = message_of(request)
    assert job.messages[1].reasoning == "why"
    assert job.template_kwargs == {
        "reasoning_effort": "none",
        "enable_thinking": False,
        "thinking": False,
    }
    given = {"enable_thinking": True, "other": [1]}
    for model, body in ((ChatCompletionRequest, CHAT), (TextGenerationRequest, NATIVE)):
        request = read(model, body, enable_thinking=False, chat_template_kwargs=given)
        assert message_of(request).template_kwargs == {**given, "thinking": False}
    assert message_of(read(ChatCompletionRequest, CHAT)).template_kwargs == {}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_non_finite_numbers_are_refused_in_fields_of_any_value(number: float) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"a": number}}}
    for more in ({"tools": [tool]}, {"chat_template_kwargs": {"a": [number]}}):
        assert "NaN" in refused(ChatCompletionRequest, CHAT, **more).message
    read(ChatCompletionRequest, CHAT, chat_template_kwargs={"a": 'NaN " Infinity'})


def test_template_switches_that_are_unknown_are_named() -> None:
    body = read(ChatCompletionRequest, CHAT, reasoning_effort="low", verbosity="high")
    assert message_of(body).template_kwargs["verbosity"] == "high"
    assert body.unknown_switches(None) == []
    assert body.unknown_switches(()) == ["reasoning_effort", "verbosity"]
    assert body.unknown_switches(("enable_thinking", "verbosity")) == []
    assert read(ChatCompletionRequest, CHAT).unknown_switches(()) == []


WORK = protocol.TextJob(id="task-1", sampling=protocol.Sampling(max_tokens=8))
CALLED = protocol.ToolCall(id="c1", name="look", arguments="{}")
DONE = protocol.TextDone(
    id="task-1",
    choices=(
        protocol.TextChoice(
            text="", finish_reason="tool_calls", reasoning="why", tool_calls=(CALLED,)
        ),
    ),
    prompt_tokens=3,
    completion_tokens=5,
    reasoning_tokens=2,
)
PIECE = protocol.ToolCallDelta(index=0, id="c1", name="look", arguments="{}")
SHOWN = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}


def log(*events: Any) -> EventLog:
    event_log = EventLog(Job(work=WORK, model="m", key_id="k"))
    for event in events:
        event_log.put(event)
    return event_log


def test_calls_and_reasoning_are_shown_in_openai_s_body() -> None:
    body = json.loads(ChatView(log(DONE), "r").body())
    [choice] = body["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "reasoning_content": "why",
        "tool_calls": [SHOWN],
    }
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}


def test_calls_and_reasoning_are_shown_in_openai_s_stream() -> None:
    view = ChatView(log(), "r")
    pieces: list[protocol.TextDelta | protocol.TextDone] = [
        protocol.TextDelta(id="task-1", text="", index=0, reasoning="why"),
        protocol.TextDelta(id="task-1", text="so", index=1),
        protocol.TextDelta(id="task-1", text="", index=2, tool_calls=(PIECE,)),
    ]
    data = b"".join(view.render(each) for each in (*pieces, DONE)).decode()
    chunks = [json.loads(each.removeprefix("data: ")) for each in data.split("\n\n")[:-2]]
    deltas = [each["choices"][0]["delta"] for each in chunks]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "why"},
        {"content": "so"},
        {"tool_calls": [{"index": 0, **SHOWN}]},
        {},
    ]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_calls_and_reasoning_are_shown_by_the_native_api() -> None:
    view = NativeView(log(DONE), "r", None)  # type: ignore[arg-type]  # text makes no files
    answer = json.loads(view.body())
    assert answer["result"]["reasoning"] == "why"
    assert answer["result"]["tool_calls"] == [SHOWN]
    assert answer["usage"]["reasoning_tokens"] == 2
    delta = protocol.TextDelta(id="task-1", text="", index=2, reasoning="x", tool_calls=(PIECE,))
    name, data = view.event(delta)
    assert name == "token"
    assert json.loads(data) == {
        "text": "",
        "index": 2,
        "reasoning": "x",
        "tool_calls": [{"index": 0, **SHOWN}],
    }


@pytest.mark.parametrize(("model", "body"), SURFACES)
def test_tools_and_switches_with_numbers_that_no_message_holds_are_refused(
    model: Any, body: dict[str, Any]
) -> None:
    """A message to a worker that cannot be written would be the last that it is sent."""
    numbers = {"type": "integer", "minimum": -(2**63), "maximum": 2**64 - 1}
    for large in (10**30, -(2**63) - 1):
        tool = {"type": "function", "function": {**FUNCTION, "parameters": {"maximum": large}}}
        assert refused(model, body, tools=[tool]).param == "tools"
        fields = {"chat_template_kwargs": {"a": [large]}}
        assert refused(model, body, **fields).param == "chat_template_kwargs"
    tool = {"type": "function", "function": {**FUNCTION, "parameters": numbers}}
    job = message_of(read(model, body, tools=[tool], chat_template_kwargs=numbers))
    assert encode_commands([job])
