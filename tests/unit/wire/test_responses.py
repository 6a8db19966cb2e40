"""Requests and answers of /v1/responses, as messages of the protocol and back."""

import json
from collections.abc import Iterable
from typing import Any

import pytest

from bitinglip.errors import InvalidRequest, UnsupportedParameter
from bitinglip.scheduling.event_log import Event, EventLog
from bitinglip.scheduling.job import Job
from bitinglip.wire.parse import parse
from bitinglip.wire.responses.items import chat_messages, shown_items
from bitinglip.wire.responses.kept import items_of, kept_input, referred, resolved
from bitinglip.wire.responses.request import ResponsesRequest
from bitinglip.wire.responses.tools import chosen
from bitinglip.wire.responses.view import ResponseView
from tests.support.speaking_script import CALLS, choice_for
from tests.support.sse import events_of
from workers import protocol
from workers.framing import decode_commands, encode_commands

FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
OTHER = {"type": "function", "name": "g"}
ECHO = {"id": "resp_1", "object": "response", "status": "in_progress", "output": [], "store": True}


def _parsed(**fields: Any) -> ResponsesRequest:
    return parse(ResponsesRequest, json.dumps({"model": "m", "input": "hi", **fields}).encode())


def _turns(items: Any, instructions: str | None = None) -> tuple[protocol.ChatMessage, ...]:
    return chat_messages(instructions, shown_items(_parsed(input=items).input, "resp_1"))


def test_items_become_turns_and_what_an_assistant_does_at_once_is_one_turn() -> None:
    call = protocol.ToolCall(id="c1", name="f", arguments="{}")
    turns = _turns(
        [
            {"role": "developer", "content": "be short"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "reasoning", "id": "rs", "summary": [],
             "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "role": "assistant", "id": "m", "status": "completed",
             "content": [{"type": "output_text", "text": "well", "annotations": []}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "f", "arguments": "broken"},
            {"type": "function_call_output", "call_id": "c1", "output": "one"},
            {"type": "function_call_output", "call_id": "c2",
             "output": [{"type": "input_text", "text": "two"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "so"}]},
            {"role": "assistant", "content": "done"},
            {"role": "system", "content": "now be long"},
        ],
        "be kind",
    )  # fmt: skip
    broken = protocol.ToolCall(id="c2", name="f", arguments="broken")
    assert turns == (
        protocol.ChatMessage("system", "be kind\n\nbe short"),
        protocol.ChatMessage("user", "hi"),
        protocol.ChatMessage("assistant", "well", tool_calls=(call, broken), reasoning="hm"),
        protocol.ChatMessage("tool", "one", tool_call_id="c1"),
        protocol.ChatMessage("tool", "two", tool_call_id="c2"),
        protocol.ChatMessage("assistant", "done", reasoning="so"),
        protocol.ChatMessage("system", "now be long"),
    )


def test_conversation_that_is_kept_as_items_is_the_same_conversation() -> None:
    call = protocol.ToolCall(id="c1", name="f", arguments="{}")
    messages = (
        protocol.ChatMessage("user", "hi"),
        protocol.ChatMessage("assistant", "well", tool_calls=(call,), reasoning="hm"),
        protocol.ChatMessage("tool", "one", tool_call_id="c1"),
        protocol.ChatMessage("assistant", "done"),
    )
    assert chat_messages(None, items_of(messages, "resp_1")) == messages


def test_input_that_the_guard_has_changed_is_kept_as_the_model_got_it() -> None:
    def work(text: str) -> protocol.TextJob:
        messages = (protocol.ChatMessage("system", "x"), protocol.ChatMessage("user", text))
        return protocol.TextJob(id="a", messages=messages, sampling=protocol.Sampling(max_tokens=1))

    sent, checked = work("I am ann@example.com"), work("I am [EMAIL]")
    assert kept_input(sent, sent, instructed=True, response_id="resp_1") is None
    [kept] = kept_input(sent, checked, instructed=True, response_id="resp_1") or []
    assert kept["content"] == [{"type": "input_text", "text": "I am [EMAIL]"}]


def test_references_are_put_in_the_place_of_the_items_that_they_name() -> None:
    tail = "0" * 32
    items = shown_items(
        _parsed(input=[{"id": f"msg_{tail}_0"}, {"type": "item_reference", "id": "x"}]).input,
        "resp_1",
    )
    assert referred(items) == {f"resp_{tail}"}
    known = {f"msg_{tail}_0": {"type": "message"}}
    assert resolved(items[:1], known) == [{"type": "message"}]
    with pytest.raises(InvalidRequest) as missing:
        resolved(items, known)
    assert missing.value.param == "input[1].id"


def test_references_to_an_item_come_once() -> None:
    """A short request would become a prompt of gigabytes."""
    tail = "0" * 32
    items = shown_items(_parsed(input=[{"id": f"msg_{tail}_0"}] * 2).input, "resp_1")
    with pytest.raises(InvalidRequest) as again:
        resolved(items, {f"msg_{tail}_0": {"type": "message"}})
    assert again.value.param == "input[1].id"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": [{"type": "message", "role": "user", "content": [
            {"type": "input_image", "image_url": "http://a"}]}]},
            "input[0].content[0].image_url"),
        ({"input": [{"type": "message", "role": "user", "content": [
            {"type": "input_file", "filename": "f"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": [
            {"type": "input_image", "image_url": "data:,"}]}]}, "input[0]"),
        ({"input": [{"type": "computer_call", "id": "a"}]}, "input[0]"),
        ({"tools": [{"type": "code_interpreter", "container": {}}]}, "tools[0]"),
        ({"tools": [{"type": "mcp", "server_label": "a"}]}, "tools[0]"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"conversation": "c"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
    ],
    ids=str,
)  # fmt: skip
def test_response_refuses_by_name_what_would_change_the_answer(
    fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(UnsupportedParameter) as refused:
        _parsed(**fields)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": [{"role": "user"}]}, "input[0]"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": ""}]}, "input[0]"),
        ({"input": 5}, "input"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"reasoning": {"effort": "most"}}, "reasoning.effort"),
        ({"truncation": "last"}, "truncation"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
    ids=str,
)
def test_response_names_the_field_at_fault(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        _parsed(**fields)
    assert refused.value.param == param


def test_search_tools_are_left_out_with_a_warning() -> None:
    body = _parsed(tools=[FUNCTION, {"type": "web_search", "external_web_access": False}], x=1)
    assert body.ignored() == ["x", "tools.web_search"]
    assert [each.name for each in chosen(body.tool_choice, body.tools or [])[0]] == ["f"]


@pytest.mark.parametrize(
    ("choice", "names", "expected"),
    [
        (None, ["f", "g"], None),
        ("required", ["f", "g"], "required"),
        ("none", ["f", "g"], "none"),
        ({"type": "function", "name": "g"}, ["f", "g"], "g"),
        ({"type": "allowed_tools", "mode": "required",
          "tools": [{"type": "function", "name": "g"}]}, ["g"], "required"),
    ],
    ids=str,
)  # fmt: skip
def test_tool_choice_of_a_response_is_said_in_the_protocol_s_words(
    choice: Any, names: list[str], expected: str | None
) -> None:
    body = _parsed(tools=[FUNCTION, OTHER], tool_choice=choice)
    functions, mode = chosen(body.tool_choice, body.tools or [])
    assert ([each.name for each in functions], mode) == (names, expected)
    assert functions[0].to_job().strict == (functions[0].name == "f")


def test_function_of_a_namespace_is_known_by_both_names() -> None:
    space = {"type": "namespace", "name": "agents", "description": "d", "tools": [FUNCTION]}
    body = _parsed(tools=[FUNCTION, space])
    functions, _ = chosen(body.tool_choice, body.tools or [])
    assert [each.to_job().name for each in functions] == ["f", "agents.f"]
    assert [each.shown() for each in body.tools or ()][1] == {
        **space, "tools": [{**FUNCTION, "description": None}],
    }  # fmt: skip
    calls = tuple(
        protocol.ToolCall(id=f"c{number}", name=name, arguments="{}")
        for number, name in enumerate(["agents.f", "f", "other.f"])
    )
    choice = protocol.TextChoice(text="", finish_reason="tool_calls", tool_calls=calls)
    deltas = [
        protocol.ToolCallDelta(index=number, id=call.id, name=call.name, arguments="{}")
        for number, call in enumerate(calls)
    ]
    told = _streamed(
        [
            protocol.TextDelta(id="task-1", text="", index=0, tool_calls=tuple(deltas)),
            _done(choice),
        ],
        tools=[space],
    )
    items = told[-1][1]["response"]["output"]
    assert items == [data["item"] for name, data in told if name == "response.output_item.done"]
    assert [(item.get("namespace"), item["name"]) for item in items] == [
        ("agents", "f"), (None, "f"), (None, "other.f"),
    ]  # fmt: skip
    assert _turns(items)[0].tool_calls == calls


def test_tools_that_are_allowed_and_not_there_are_refused() -> None:
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [OTHER]}
    body = _parsed(tools=[FUNCTION], tool_choice=allowed)
    with pytest.raises(InvalidRequest):
        chosen(body.tool_choice, body.tools or [])


# ---- the stream ----------------------------------------------------------------------------------


def _streamed(events: Iterable[Event], *, after: int = -1, **echoed: Any) -> list[tuple[str, Any]]:
    work = protocol.TextJob(
        id="task-1", prompt="x", sampling=protocol.Sampling(max_tokens=5, logprobs=1)
    )
    event_log = EventLog(Job(work=work, model="org/m", key_id="k"))
    view = ResponseView(event_log, "r", echo={**ECHO, **echoed}, after=after)
    shown = b""
    for event in events:
        event_log.put(event)
        shown += view.render(event)
    return events_of(shown)


def _done(choice: protocol.TextChoice) -> protocol.TextDone:
    return protocol.TextDone(
        id="task-1", choices=(choice,), prompt_tokens=9, completion_tokens=5, reasoning_tokens=2
    )


def _whole_stream() -> list[Event]:
    deltas: list[Event] = [
        protocol.TextDelta(id="task-1", text="", index=0, reasoning="let me see"),
        protocol.TextDelta(id="task-1", text="it is", index=1),
        protocol.TextDelta(id="task-1", text=" fine", index=2),
    ]
    for index, call in enumerate(CALLS):
        piece = protocol.ToolCallDelta(
            index=index, id=call.id, name=call.name, arguments=call.arguments
        )
        deltas.append(protocol.TextDelta(id="task-1", text="", index=3, tool_calls=(piece,)))
    return [*deltas, _done(choice_for("!think !call"))]


def test_stream_of_a_response_has_each_event_in_its_order() -> None:
    told = _streamed(_whole_stream())
    added, done = "response.output_item.added", "response.output_item.done"
    part = ["response.content_part.added"]
    part_done = ["response.content_part.done", done]
    reasoning = ["response.reasoning_text.delta", "response.reasoning_text.done"]
    text = ["response.output_text.delta"] * 2 + ["response.output_text.done"]
    arguments = [f"response.function_call_arguments.{each}" for each in ("delta", "done")]
    assert [name for name, _ in told] == [
        "response.created", "response.in_progress",
        added, *part, *reasoning, *part_done,
        added, *part, *text, *part_done,
        added, *arguments, done,
        added, *arguments, done,
        "response.completed",
    ]  # fmt: skip
    assert [data["sequence_number"] for _, data in told] == list(range(len(told)))
    assert all(name == data["type"] for name, data in told)
    items = [data["item"] for name, data in told if name == done]
    assert items == told[-1][1]["response"]["output"]


def test_stream_of_a_response_continues_after_the_number_that_was_seen() -> None:
    whole, rest = _streamed(_whole_stream()), _streamed(_whole_stream(), after=7)
    assert rest == whole[8:]


def test_reasoning_of_a_response_that_is_not_kept_can_be_sent_back_packed() -> None:
    told = _streamed(_whole_stream(), store=False)
    item = told[-1][1]["response"]["output"][0]
    done = (data["item"] for name, data in told if name == "response.output_item.done")
    assert next(done) == item
    del item["content"]
    [turn] = _turns([item])
    assert turn.reasoning == "let me see"
    kept = _streamed(_whole_stream())[-1][1]["response"]["output"][0]
    assert kept["encrypted_content"] is None
    for other in ("gAAAA", "bitinglip-1.%"):
        [turn] = _turns([{**item, "encrypted_content": other}])
        assert turn.reasoning is None


def test_reasoning_stands_in_the_summary_that_a_client_asks_for() -> None:
    """Clients that ask for a summary show nothing else of the reasoning."""
    asked = _parsed(reasoning={"summary": "auto"}).reasoning
    assert asked is not None
    told = _streamed(_whole_stream(), reasoning={"effort": None, "summary": asked.asked_summary})
    names = [f"response.reasoning_summary_{each}" for each in
             ("part.added", "text.delta", "text.done", "part.done")]  # fmt: skip
    assert [name for name, _ in told if "reasoning" in name] == names
    assert [data["delta"] for name, data in told if name == names[1]] == ["let me see"]
    item = told[-1][1]["response"]["output"][0]
    assert item["summary"] == [{"type": "summary_text", "text": "let me see"}]
    assert item["content"] == []
    [turn] = _turns([item])
    assert turn.reasoning == "let me see"
    assert chat_messages(None, [item])[0].reasoning == "let me see"
    for other in ({}, {"summary": None}, {"summary": "none"}):
        plain = _parsed(reasoning=other).reasoning
        assert plain is not None
        assert plain.asked_summary is None


@pytest.mark.parametrize(
    ("final", "name", "status"),
    [
        (_done(choice_for("!long")), "response.incomplete", "incomplete"),
        (protocol.Failed(id="task-1", code="WORKER_CRASHED", message="it died"),
         "response.failed", "failed"),
        (protocol.Cancelled(id="task-1"), "response.failed", "cancelled"),
    ],
    ids=str,
)  # fmt: skip
def test_stream_of_a_response_tells_how_it_ended(
    final: protocol.Final, name: str, status: str
) -> None:
    told = _streamed([protocol.TextDelta(id="task-1", text="a", index=0), final])
    last, data = told[-1]
    assert (last, data["response"]["status"]) == (name, status)
    closed = next(data["item"] for name, data in told if name == "response.output_item.done")
    assert closed["status"] == "incomplete"
    if status == "incomplete":
        assert data["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    if status == "failed":
        assert data["response"]["error"]["code"] == "server_error"


@pytest.mark.parametrize("name", ["metadata", "user", "safety_identifier", "prompt_cache_key"])
def test_labels_that_are_shown_again_are_short(name: str) -> None:
    """Each request holds them for as long as its response is made."""
    assert _parsed(**{name: {"a": "x" * 10_000}}).ignored() == []
    with pytest.raises(InvalidRequest) as refused:
        _parsed(**{name: {"a": ["x"] * 20_000}})
    assert refused.value.param == name


def test_names_with_their_namespaces_are_short_enough_for_a_message() -> None:
    """A worker that cannot read a message would take no other one."""
    call = {"type": "function_call", "call_id": "c", "arguments": "{}", "name": "n" * 128}
    fits = {**call, "namespace": "s" * 127}
    items = shown_items(_parsed(input=[fits]).input, "resp_1")
    job = protocol.TextJob(
        id="j", messages=chat_messages(None, items), sampling=protocol.Sampling(max_tokens=1)
    )
    assert decode_commands(encode_commands([job])) == [job]
    long = "s" * 128
    tools = [{"type": "namespace", "name": long, "tools": [{**FUNCTION, "name": "n" * 128}]}]
    for fields in ({"input": [{**call, "namespace": long}]}, {"tools": tools}):
        with pytest.raises(InvalidRequest, match="256"):
            _parsed(**fields)


def test_switches_that_a_template_does_not_know_are_named_as_they_were_sent() -> None:
    asked = _parsed(reasoning={"effort": "low"}, text={"verbosity": "low"})
    assert asked.unknown_switches([]) == ["reasoning.effort", "text.verbosity"]
    assert asked.unknown_switches(["enable_thinking"]) == ["text.verbosity"]
    assert asked.unknown_switches(None) == _parsed().unknown_switches([]) == []
