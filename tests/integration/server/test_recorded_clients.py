"""Real clients' requests, as their sources write them when users set nothing, are answered.

They are written down from studies of the clients, not captured: packages take minutes to install.
"""

from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.server import Server
from tests.support.sse import STREAM_END, events_of

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "hi"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "hi"}]}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
            "$schema": "http://json-schema.org/draft-07/schema#",
        },
    },
}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}


@dataclass(frozen=True)
class Recorded:
    """Holds a client's request: its user agent, its body without the model, other headers."""

    client: str
    body: dict[str, Any]
    path: str = CHAT


RECORDED = [
    Recorded("OpenAI/Python 2.54.0", {"messages": [USER]}),
    Recorded("OpenAI/Python 2.54.0", {"messages": [USER], "stream": True}),
    Recorded("OpenAI/Python 2.54.0", {"prompt": "hi"}, COMPLETIONS),
    Recorded("OpenAI/JS 6.49.0", {"messages": [USER], "stream": True}),
    Recorded("langchain-openai 1.7.4", {
        "messages": [{**USER, "name": "ann"}], "stream": False, "max_completion_tokens": 5}),
    Recorded("langchain-openai 1.7.4", {
        "messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]},
                     {"role": "tool", "tool_call_id": "call_1", "content": "rain"}],
        "tools": [WEATHER], "stream": False}),
    Recorded("langchain-openai 1.7.4", {
        "prompt": ["a", "b"], "frequency_penalty": 0.0, "max_tokens": 5, "n": 1,
        "presence_penalty": 0.0, "temperature": 0.7, "top_p": 1.0}, COMPLETIONS),
    Recorded("@langchain/openai 1.5.8", {"messages": [USER], **USAGE}),
    Recorded("llama-index 0.8.1", {"messages": [USER], "temperature": 0.1, "stream": False}),
    Recorded("llama-index 0.8.1", {"prompt": "hi", "temperature": 0.1, "stream": True},
             COMPLETIONS),
    Recorded("litellm 1.110.2", {"messages": [USER], "extra_body": {}}),
    Recorded("ai-sdk/openai-compatible/2.0.92", {
        "messages": [{"role": "system", "content": "Be brief."}, USER], "tools": [WEATHER],
        "tool_choice": "auto", **USAGE}),
    Recorded("ai-sdk/openai/3.0.141", {
        "messages": [{"role": "developer", "content": "Be brief."}, USER],
        "max_completion_tokens": 5, "stream": True}),
    Recorded("opencode/1.18.33", {
        "messages": [{"role": "system", "content": "Be brief."}, PARTS], "max_tokens": 32_000,
        "prompt_cache_key": "ses_1", "stop": ["e", "a", " ", "o"], **USAGE}),
    Recorded("cline", {"messages": [{"role": "system", "content": "x"}, PARTS], "temperature": 0,
                       "max_tokens": 8, **USAGE}),
    Recorded("open-webui 0.12.4", {"messages": [USER], "stream": True, "max_tokens": -1,
                                   "stop": ["e", "a", " ", "o"]}),
    Recorded("copilot", {"messages": [{**USER, "copilot_cache_control": {"type": "ephemeral"}}],
                         "max_tokens": 5, "intent": False, "n": 1, **USAGE}),
]  # fmt: skip


@pytest.mark.parametrize("sent", RECORDED, ids=lambda sent: sent.client)
def test_recorded_request_of_a_client_is_answered(server: Server, sent: Recorded) -> None:
    body = {"model": "demo-text", **sent.body}
    if "messages" in body and not {"max_tokens", "max_completion_tokens"} & body.keys():
        body["max_tokens"] = 8  # so that the test is short
    headers = {"user-agent": sent.client, "accept": "application/json", "x-stainless-lang": "x"}
    with server.client() as client:
        response = client.post(sent.path, json=body, headers=headers)
    assert response.status_code == 200, response.text
    if not body.get("stream"):
        assert response.json()
        return
    *events, end = events_of(response.text)
    assert end == STREAM_END
    chunks = [data for _, data in events]
    usages = [chunk for chunk in chunks if not chunk["choices"]]
    assert len(usages) == ("stream_options" in body)
    reasons = [each["finish_reason"] for chunk in chunks for each in chunk["choices"]]
    assert [reason for reason in reasons if reason] == reasons[-1:]
