"""Anthropic's surface: with the official client, and with what coding agents send first."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.api_server import Served
from tests.support.speaking_script import REASONING, TEXT
from tests.support.sse import events_of

TOOLS: list[Any] = [
    {
        "name": "get_weather",
        "description": "Tell the weather.",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
    {
        "name": "get_time",
        "input_schema": {"type": "object"},
        "cache_control": {"type": "ephemeral"},
    },
]

#: what Claude Code 2.1.197 was seen to send first, texts and tools shortened
CLAUDE_CODE: dict[str, Any] = {
    "model": "demo",
    "max_tokens": 32_000,
    "stream": True,
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.197;"},
        {"type": "text", "text": "You are a coding agent.", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "# Environment\n", "cache_control": {"type": "ephemeral"}},
    ],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<system-reminder>\nToday is Friday.\n</system-reminder>"},
                {"type": "text", "text": "say hi", "cache_control": {"type": "ephemeral"}},
            ],
        },
        {"role": "system", "content": "Available agent types for the Agent tool:\n- claude"},
    ],
    "tools": [
        {
            "name": "Bash",
            "description": "Executes a bash command and returns its output.",
            "input_schema": {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "type": "object",
                "properties": {"command": {"type": "string"}, "timeout": {"type": "number"}},
                "required": ["command"],
                "additionalProperties": False,
            },
        }
    ],
    "thinking": {"type": "adaptive"},
    "output_config": {"effort": "high"},
    "metadata": {"user_id": '{"device_id":"38","account_uuid":"","session_id":"77"}'},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
}
AGENT_HEADERS = {
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,effort-2025-11-24",
    "anthropic-dangerous-direct-browser-access": "true",
    "user-agent": "claude-cli/2.1.197 (external, sdk-cli)",
    "x-app": "cli",
    "x-claude-code-session-id": "77",
    "x-stainless-lang": "js",
}


def _user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@pytest.fixture
def client(speaker: Served) -> Iterator[Any]:
    import anthropic  # takes seconds

    key = speaker.keys["inference:text"]
    with anthropic.Anthropic(
        base_url=speaker.url, api_key=key, max_retries=0, timeout=20
    ) as client:
        yield client
    speaker.wait_idle()


@pytest.fixture
def http(speaker: Served) -> Iterator[httpx.Client]:
    headers = {"x-api-key": speaker.keys["inference:text"], **AGENT_HEADERS}
    with httpx.Client(base_url=speaker.url, headers=headers, timeout=20) as client:
        yield client
    speaker.wait_idle()


def test_message_is_answered(client: Any, speaker: Served) -> None:
    message = client.messages.create(
        model="demo",
        max_tokens=16,
        system="Be kind.",
        messages=_user("hi"),
        stop_sequences=["END"],
        metadata={"user_id": "u"},
        service_tier="auto",
    )
    [block] = message.content
    assert (block.type, block.text) == ("text", TEXT)
    assert (message.role, message.stop_reason, message.model) == ("assistant", "end_turn", "demo")
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (4, 3)
    assert message.usage.output_tokens == 5
    assert message._request_id
    work: Any = speaker.workers.jobs[-1]
    assert [(each.role, each.content) for each in work.messages] == [
        ("system", "Be kind."),
        ("user", "hi"),
    ]
    assert (work.sampling.max_tokens, work.sampling.stop) == (16, ("END",))
    assert work.clip_max_tokens


def test_message_stream_is_the_whole_message(client: Any) -> None:
    asked: dict[str, Any] = {
        "model": "demo",
        "max_tokens": 16,
        "messages": _user("!think !call"),
        "tools": TOOLS,
    }
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        shown = list(stream)
        final = stream.get_final_message()
    assert [block.type for block in final.content] == ["thinking", "text", "tool_use", "tool_use"]
    for one, other in zip(whole.content, final.content, strict=True):
        assert one.model_dump(exclude={"signature"}) == other.model_dump(exclude={"signature"})
    assert (final.stop_reason, final.usage.output_tokens) == ("tool_use", 5)
    text = "".join(event.text for event in shown if event.type == "text")
    thought = "".join(event.thinking for event in shown if event.type == "thinking")
    assert (text, thought) == (TEXT, REASONING)


def test_tool_call_round_trips(client: Any, speaker: Served) -> None:
    first = client.messages.create(
        model="demo", max_tokens=16, messages=_user("!think !call"), tools=TOOLS,
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
    )  # fmt: skip
    work: Any = speaker.workers.jobs[-1]
    assert [each.name for each in work.tools] == ["get_weather", "get_time"]
    assert (work.tool_choice, work.parallel_tool_calls) == ("required", False)
    calls = [block for block in first.content if block.type == "tool_use"]
    assert [(each.name, each.input) for each in calls] == [
        ("get_weather", {"city": "Łódź"}),
        ("get_time", {}),
    ]
    results: list[Any] = [
        {"type": "tool_result", "tool_use_id": each.id, "content": f"result {number}"}
        for number, each in enumerate(calls)
    ]
    turns: list[Any] = [
        *_user("!think !call"),
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": results},
    ]
    second = client.messages.create(model="demo", max_tokens=16, messages=turns, tools=TOOLS)
    assert second.stop_reason == "end_turn"
    work = speaker.workers.jobs[-1]
    assistant, *told = work.messages[1:]
    assert [each.arguments for each in assistant.tool_calls] == ['{"city":"Łódź"}', "{}"]
    assert (assistant.content, assistant.reasoning) == (TEXT, REASONING)
    assert [(each.role, each.content, each.tool_call_id) for each in told] == [
        ("tool", "result 0", "call-1"),
        ("tool", "result 1", "call-2"),
    ]


def test_tokens_are_counted_without_any_being_made(client: Any, speaker: Served) -> None:
    usage = "/api/v1/usage"
    headers = speaker.headers("inference:text")
    before = httpx.get(speaker.url + usage, headers=headers).json()
    count = client.messages.count_tokens(
        model="demo", system="one two", messages=_user("three four five"), tools=TOOLS
    )
    assert count.input_tokens == 5
    after = httpx.get(speaker.url + usage, headers=headers).json()
    tokens = [sum(each["prompt_tokens"] for each in told["data"]) for told in (before, after)]
    assert tokens[0] == tokens[1]


def test_prefilled_message_is_continued(client: Any, speaker: Served) -> None:
    turns: list[Any] = [*_user("hi"), {"role": "assistant", "content": "The answer is"}]
    assert client.messages.create(model="demo", max_tokens=16, messages=turns).content
    work: Any = speaker.workers.jobs[-1]
    assert work.continue_final


@pytest.mark.parametrize("beta", ["", "?beta=true"])
def test_claude_code_first_request_is_streamed(http: httpx.Client, beta: str) -> None:
    response = http.post(f"/v1/messages{beta}", json=CLAUDE_CODE)
    assert response.status_code == 200, response.text
    assert response.headers["x-ignored-fields"] == "context_management, output_config.effort"
    assert response.headers["request-id"] == response.headers["x-request-id"]
    told = events_of(response.text)
    assert (told[0][0], told[-1][0]) == ("message_start", "message_stop")


def test_claude_code_count_and_quota_probe_are_answered(http: httpx.Client) -> None:
    probe = {"model": "demo", "max_tokens": 1, "messages": _user("quota")}
    assert http.post("/v1/messages", json=probe).status_code == 200
    count = {
        name: CLAUDE_CODE[name] for name in ("model", "messages", "tools", "system", "thinking")
    }
    response = http.post("/v1/messages/count_tokens?beta=true", json=count)
    assert response.json()["input_tokens"] > 0


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind"),
    [
        ("POST", "/v1/messages", {"model": "demo", "max_tokens": 1}, 400, "invalid_request_error"),
        ("POST", "/v1/messages", {"model": "nope", "max_tokens": 1, "messages": _user("a")}, 404,
         "not_found_error"),
        ("POST", "/v1/messages", {"x": "y" * 20_000_000}, 413, "request_too_large"),
        ("POST", "/v1/messages/batches", {}, 404, "not_found_error"),
        ("GET", "/v1/messages", None, 405, "invalid_request_error"),
        ("POST", "/v1/messages/count_tokens", {"model": "demo"}, 400, "invalid_request_error"),
    ],
    ids=["missing", "model", "large", "route", "method", "count"],
)  # fmt: skip
def test_errors_have_anthropic_s_shape(
    http: httpx.Client, method: str, path: str, body: Any, status: int, kind: str
) -> None:
    response = http.request(method, path, json=body)
    assert response.status_code == status
    told = response.json()
    assert set(told) == {"type", "error", "request_id"}
    assert (told["type"], told["error"]["type"]) == ("error", kind)
    assert told["error"]["message"]
    assert told["request_id"] == response.headers["request-id"]


def test_errors_are_those_of_the_client(client: Any) -> None:
    import anthropic

    ask = client.messages.create
    with pytest.raises(anthropic.AuthenticationError) as refused:
        client.with_options(api_key="nonsense").messages.create(
            model="demo", max_tokens=1, messages=_user("a")
        )
    assert refused.value.type == "authentication_error"
    with pytest.raises(anthropic.NotFoundError) as missing:
        ask(model="nope", max_tokens=1, messages=_user("a"))
    assert "demo" in str(missing.value.body)
    with pytest.raises(anthropic.BadRequestError) as long:
        ask(model="demo", max_tokens=1, messages=_user("!refuse"), stream=True)
    assert "prompt is too long" in str(long.value)
    assert long.value.error_code == "context_length_exceeded"
    with (
        pytest.raises(anthropic.APIStatusError, match="it died"),
        client.messages.stream(model="demo", max_tokens=9, messages=_user("!crash")) as stream,
    ):
        list(stream)


def test_wrong_scope_and_limits_have_anthropic_s_shape(speaker: Served) -> None:
    body = {"model": "demo", "max_tokens": 1, "messages": _user("a")}
    headers = {"x-api-key": speaker.keys["models:read"]}
    response = httpx.post(f"{speaker.url}/v1/messages", json=body, headers=headers)
    assert response.status_code == 403
    assert response.json()["error"]["type"] == "permission_error"


def test_label_fields_are_accepted_without_a_warning(http: httpx.Client) -> None:
    body = {
        "model": "demo", "max_tokens": 2, "messages": _user("a"), "service_tier": "standard_only",
        "metadata": {}, "cache_control": {"type": "ephemeral"}, "speed": None, "container": None,
        "top_k": 5, "top_p": 0.9, "temperature": 1, "stop_sequences": [""], "tools": [],
        "inference_geo": "eu", "thinking": {"type": "adaptive", "display": "omitted"},
    }  # fmt: skip
    response = http.post("/v1/messages", json=body)
    assert response.status_code == 200, response.text
    assert "x-ignored-fields" not in response.headers
