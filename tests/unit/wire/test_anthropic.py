"""Requests and answers of Anthropic's surface, as messages of the protocol and back."""

import json
import time
from collections.abc import Iterable
from typing import Any

import pytest

from bitinglip import errors
from bitinglip.errors import InvalidRequest, UnsupportedParameter
from bitinglip.scheduling.event_log import Event, EventLog
from bitinglip.scheduling.job import Job
from bitinglip.wire.anthropic.blocks import chat_messages
from bitinglip.wire.anthropic.errors import anthropic_error, anthropic_status
from bitinglip.wire.anthropic.messages import MessagesRequest
from bitinglip.wire.anthropic.view import MessagesView
from bitinglip.wire.parse import parse
from tests.support.speaking_script import CALLS, REASONING, TEXT, choice_for
from tests.support.sse import events_of
from workers import protocol

BODY: dict[str, Any] = {
    "model": "m",
    "max_tokens": 16,
    "messages": [{"role": "user", "content": "hi"}],
}
CALL = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
TOOL = {"name": "f", "input_schema": {"type": "object"}}


def _parsed(**fields: Any) -> MessagesRequest:
    return parse(MessagesRequest, json.dumps({**BODY, **fields}).encode())


def _turns(*messages: dict[str, Any], **fields: Any) -> tuple[protocol.ChatMessage, ...]:
    body = _parsed(messages=list(messages), **fields)
    return chat_messages(body.system, body.messages)


def test_tool_results_become_turns_of_their_own_in_the_order_of_the_blocks() -> None:
    call = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": [1, "ż"]}}
    results: list[Any] = [
        {"type": "tool_result", "tool_use_id": "t1", "content": "one"},
        {
            "type": "tool_result",
            "tool_use_id": "t2",
            "is_error": True,
            "content": [{"type": "text", "text": "two"}, {"type": "text", "text": "three"}],
        },
        {"type": "tool_result", "tool_use_id": "t3"},
        {"type": "text", "text": "go on", "cache_control": {"type": "ephemeral"}},
    ]
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    turns = _turns(
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [thought, {"type": "text", "text": "well"}, call]},
        {"role": "user", "content": results},
        system=[{"type": "text", "text": "be kind"}, {"type": "text", "text": "be short"}],
    )
    assert turns == (
        protocol.ChatMessage("system", "be kind\n\nbe short"),
        protocol.ChatMessage("user", "hi"),
        protocol.ChatMessage(
            "assistant",
            "well",
            tool_calls=(protocol.ToolCall(id="t1", name="f", arguments='{"a":[1,"ż"]}'),),
            reasoning="hm",
        ),
        protocol.ChatMessage("tool", "one", tool_call_id="t1"),
        protocol.ChatMessage("tool", "two\nthree", tool_call_id="t2"),
        protocol.ChatMessage("tool", "", tool_call_id="t3"),
        protocol.ChatMessage("user", "go on"),
    )


def test_user_turns_in_a_row_and_what_the_system_says_later_are_one_turn() -> None:
    turns = _turns(
        {"role": "user", "content": "one"},
        {"role": "user", "content": "two"},
        {"role": "system", "content": "be kind"},
        {"role": "assistant", "content": "well"},
        {"role": "system", "content": "be short"},
        system="begin",
    )
    assert [(each.role, each.content) for each in turns] == [
        ("system", "begin"),
        ("user", "one\n\ntwo\n\nbe kind"),
        ("assistant", "well"),
        ("user", "be short"),
    ]
    [first] = _turns({"role": "system", "content": "alone"})
    assert first.role == "system"


@pytest.mark.parametrize(
    ("block", "kind"),
    [
        ({"type": "image", "source": {"type": "url", "url": "https://a/b.png"}}, "url"),
        ({"type": "image", "source": {"type": "file", "file_id": "f"}}, "file"),
        ({"type": "document", "source": {"type": "text", "data": ""}}, "document"),
        (
            {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "document"}]},
            "document",
        ),
        ({"type": "server_tool_use", "id": "a", "name": "web_search"}, "server_tool_use"),
    ],
    ids=str,
)
def test_blocks_that_the_model_cannot_read_are_refused_by_name(block: Any, kind: str) -> None:
    with pytest.raises(UnsupportedParameter) as refused:
        _parsed(messages=[{"role": "user", "content": [{"type": "text", "text": "a"}, block]}])
    assert f"'{kind}'" in refused.value.message
    assert (refused.value.param or "").startswith("messages[0].content[1]")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [CALL]}]}, "messages[0]"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"tools": [{"name": "f"}]}, "tools[0]"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice"),
        ({"thinking": {"type": "deep"}}, "thinking.type"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{"name": "a"}]}, "mcp_servers"),
    ],
    ids=str,
)  # fmt: skip
def test_messages_request_names_the_field_at_fault(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        _parsed(**fields)
    assert refused.value.param == param


def test_max_tokens_must_be_there() -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse(MessagesRequest, json.dumps({"model": "m", "messages": BODY["messages"]}).encode())
    assert refused.value.param == "max_tokens"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool", "name": "g"}, "tools": [TOOL]}, "tool_choice"),
        ({"messages": [{"role": "assistant", "content": [CALL]}]}, "messages[0]"),
    ],
    ids=str,
)  # fmt: skip
def test_messages_request_is_refused_where_its_fields_do_not_fit_together(
    fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        _parsed(**fields).text_job(protocol.Sampling(max_tokens=1))
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("choice", "expected", "parallel"),
    [
        (None, "auto", True),
        ({"type": "auto", "disable_parallel_tool_use": True}, "auto", False),
        ({"type": "any"}, "required", True),
        ({"type": "tool", "name": "f"}, "f", True),
    ],
)
def test_tool_choice_is_said_in_the_protocol_s_words(
    choice: Any, expected: str, *, parallel: bool
) -> None:
    work = _parsed(tools=[TOOL], tool_choice=choice).text_job(protocol.Sampling(max_tokens=1))
    assert (work.tool_choice, work.parallel_tool_calls) == (expected, parallel)
    assert work.tools == (protocol.Tool(name="f", parameters={"type": "object"}),)
    none = _parsed(tools=[TOOL], tool_choice={"type": "none"})
    assert none.text_job(protocol.Sampling(max_tokens=1)).tools == ()


def test_thinking_and_effort_are_given_to_the_template() -> None:
    body = _parsed(
        thinking={"type": "enabled", "budget_tokens": 31_999}, output_config={"effort": "max"}
    )
    work = body.text_job(protocol.Sampling(max_tokens=1))
    assert work.template_kwargs == {
        "enable_thinking": True,
        "thinking": True,
        "reasoning_effort": "high",
    }
    off = _parsed(thinking={"type": "disabled"})
    assert off.text_job(protocol.Sampling(max_tokens=1)).template_kwargs == {
        "enable_thinking": False,
        "thinking": False,
    }
    assert not off.shows_thinking


def test_effort_that_a_template_does_not_know_is_named_as_it_was_sent() -> None:
    body = _parsed(thinking={"type": "disabled"}, output_config={"effort": "low"})
    assert body.unknown_switches([]) == ["output_config.effort"]
    assert body.unknown_switches(["reasoning_effort"]) == []
    assert body.unknown_switches(None) == []


def test_prefilled_answer_continues_the_last_message() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "The answer is"}]
    work = _parsed(messages=turns).text_job(protocol.Sampling(max_tokens=1))
    assert work.continue_final
    assert not _parsed().text_job(protocol.Sampling(max_tokens=1)).continue_final


# ---- answers -------------------------------------------------------------------------------------


def _view(*events: Event, max_tokens: int = 5, thinking: bool = True) -> MessagesView:
    work = protocol.TextJob(
        id="task-1", prompt="x", sampling=protocol.Sampling(max_tokens=max_tokens)
    )
    event_log = EventLog(Job(work=work, model="org/m", key_id="k"))
    for event in events:
        event_log.put(event)
    return MessagesView(event_log, "r", thinking=thinking)


def _done(choice: protocol.TextChoice) -> protocol.TextDone:
    return protocol.TextDone(
        id="task-1",
        choices=(choice,),
        prompt_tokens=9,
        completion_tokens=5,
        cached_tokens=4,
        reasoning_tokens=2,
    )


def test_message_holds_thinking_text_and_calls_in_this_order() -> None:
    message = json.loads(_view(_done(choice_for("!think !call"))).body())
    kinds = [block["type"] for block in message["content"]]
    assert kinds == ["thinking", "text", "tool_use", "tool_use"]
    assert message["content"][0]["thinking"] == REASONING
    assert message["content"][1]["text"] == TEXT
    assert message["content"][2]["input"] == {"city": "Łódź"}
    assert message["usage"] == {
        "input_tokens": 5,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 5,
        "output_tokens_details": {"thinking_tokens": 2},
    }


def test_message_keeps_the_text_of_thoughts_to_itself_when_asked_to() -> None:
    message = json.loads(_view(_done(choice_for("!think")), thinking=False).body())
    assert [each["type"] for each in message["content"]] == ["thinking", "text"]
    assert message["content"][0]["thinking"] == ""


@pytest.mark.parametrize(
    ("asked", "max_tokens", "reason"),
    [
        ("", 5, ("end_turn", None)),
        ("!stop", 5, ("stop_sequence", "END")),
        ("!call", 5, ("tool_use", None)),
        ("!long", 5, ("max_tokens", None)),
        ("!long", 50, ("model_context_window_exceeded", None)),
    ],
)
def test_message_says_why_it_ended(
    asked: str, max_tokens: int, reason: tuple[str, str | None]
) -> None:
    message = json.loads(_view(_done(choice_for(asked)), max_tokens=max_tokens).body())
    assert (message["stop_reason"], message["stop_sequence"]) == reason


@pytest.mark.parametrize("arguments", ['{"a":"b', "", "nonsense", "[1]"])
def test_call_that_was_cut_off_is_shown_as_far_as_it_goes(arguments: str) -> None:
    call = protocol.ToolCall(id="c", name="f", arguments=arguments)
    choice = protocol.TextChoice(text="", finish_reason="length", tool_calls=(call,))
    [block] = json.loads(_view(_done(choice)).body())["content"]
    assert isinstance(block["input"], dict)


def _streamed(view: MessagesView, events: Iterable[Event]) -> list[tuple[str, Any]]:
    return events_of(b"".join(view.render(event) for event in events))


def test_stream_closes_each_block_before_the_next_and_counts_them() -> None:
    deltas: list[Event] = [
        protocol.Started(id="task-1", prompt_tokens=9),
        protocol.TextDelta(id="task-1", text="", index=0, reasoning="hm"),
        protocol.TextDelta(id="task-1", text="a", index=1),
        protocol.TextDelta(id="task-1", text='"b\n', index=2),
    ]
    for index, call in enumerate(CALLS):
        piece = protocol.ToolCallDelta(
            index=index, id=call.id, name=call.name, arguments=call.arguments
        )
        deltas.append(protocol.TextDelta(id="task-1", text="", index=3, tool_calls=(piece,)))
    told = _streamed(_view(), [*deltas, _done(choice_for("!call"))])
    assert all(name == data["type"] for name, data in told)
    names = [name for name, _ in told if name != "ping"]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    thinking = [*block[:2], *block[1:]]  # its signature comes last
    text = [*block[:2], *block[1:]]
    assert names == [
        "message_start", *thinking, *text, *block, *block, "message_delta", "message_stop",
    ]  # fmt: skip
    assert [data["index"] for _, data in told if "index" in data] == [
        0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3,
    ]  # fmt: skip
    assert told[0][1]["message"]["usage"]["input_tokens"] == 9


def test_stream_without_any_output_has_an_empty_text() -> None:
    told = _streamed(_view(), [_done(protocol.TextChoice(text="", finish_reason="stop"))])
    assert [name for name, _ in told] == [
        "message_start", "ping", "content_block_start", "content_block_stop", "message_delta",
        "message_stop",
    ]  # fmt: skip


def test_stream_tells_a_late_failure_in_anthropic_s_shape() -> None:
    failed = protocol.Failed(id="task-1", code="WORKER_CRASHED", message="it died")
    [(name, data)] = _streamed(_view(), [failed])
    assert (name, data["type"], data["request_id"]) == ("error", "error", "r")
    assert (data["error"]["type"], data["error"]["message"]) == ("api_error", "it died")


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (errors.InvalidApiKey(), 401, "authentication_error"),
        (errors.ModelNotAllowed(), 403, "permission_error"),
        (errors.PayloadTooLarge(), 413, "request_too_large"),
        (errors.UnsupportedMediaType(), 415, "invalid_request_error"),
        (errors.RateLimitExceeded(), 429, "rate_limit_error"),
        (errors.QuotaExceeded(), 429, "rate_limit_error"),
        (errors.InternalError(), 500, "api_error"),
        (errors.ShuttingDown(), 503, "api_error"),
        (errors.Timeout(), 504, "timeout_error"),
        (errors.QueueFull(), 529, "overloaded_error"),
        (errors.Overloaded(), 529, "overloaded_error"),
    ],
    ids=lambda each: str(getattr(each, "message", each)),
)
def test_errors_have_the_statuses_and_types_that_clients_act_on(
    error: errors.BitingLipError, status: int, kind: str
) -> None:
    told = json.loads(anthropic_error(error, "r"))
    assert (anthropic_status(error), told["error"]["type"]) == (status, kind)
    assert told["error"]["details"]["error_code"] == errors.answer(error).code.lower()


def test_user_turns_without_number_are_joined_once() -> None:
    """Each joined with all before it would copy gigabytes while nothing else runs."""
    text = "x" * 2000
    body = _parsed(messages=[{"role": "user", "content": text}] * 4096)
    begin = time.process_time()
    [turn] = chat_messages(body.system, body.messages)
    assert time.process_time() - begin < 3  # a tenth of a second, or far more than a minute
    assert turn.content == "\n\n".join([text] * 4096)
