"""/v1/responses: made, streamed, kept and gone on with, by the official client and by agents."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.support.api_server import Served, serve
from tests.support.speaking_script import REASONING, TEXT, speak
from tests.support.sse import events_of, iter_events
from tests.support.wait import eventually

FUNCTION: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Tell the weather.",
    "strict": False,
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
#: what Codex 0.171.0 was seen to send first, texts and tools shortened
CODEX: dict[str, Any] = {
    "model": "demo",
    "stream": True,
    "input": [
        {"type": "message", "id": "msg_96ab0e3f-dd3b", "role": "developer", "content": [
            {"type": "input_text", "text": "You are a coding agent."}]},
        {"type": "message", "id": "msg_01a21d5a-7ffb", "role": "developer", "content": [
            {"type": "input_text", "text": "<skills_instructions/>"},
            {"type": "input_text", "text": "<permissions/>"}]},
        {"type": "message", "id": "msg_01a21d5a-7ffc", "role": "user", "content": [
            {"type": "input_text", "text": "<environment_context/>"}]},
        {"type": "message", "id": "msg_01a21d5a-8006", "role": "user", "content": [
            {"type": "input_text", "text": "say hi"}]},
    ],
    "tools": [
        {"type": "function", "name": "exec_command", "strict": False, "description": "Runs.",
         "parameters": {"type": "object", "properties": {"cmd": {"type": "string"}}}},
        {"type": "namespace", "name": "multi_agent_v1", "description": "Agents.", "tools": [
            {"type": "function", "name": "close_agent", "description": "Close.", "strict": False,
             "parameters": {"type": "object", "properties": {}}}]},
        {"type": "web_search", "external_web_access": False},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"summary": "auto"},
    "store": False,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "01a21d57-d978",
    "client_metadata": {"x-codex-window-id": "0"},
}  # fmt: skip


@pytest.fixture
def client(speaker: Served) -> Iterator[openai.OpenAI]:
    with _client(speaker) as client:
        yield client
    speaker.wait_idle()


def _client(served: Served, scope: str = "inference:text") -> openai.OpenAI:
    key = served.keys[scope]
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0, timeout=20)


def _ended(client: openai.OpenAI, response_id: str) -> Any:
    """Wait for the end of a background response."""
    found: list[Any] = []

    def has_ended() -> bool:
        found[:] = [client.responses.retrieve(response_id)]
        return found[0].status not in ("queued", "in_progress")

    eventually(has_ended)
    return found[0]


def test_response_is_answered_and_kept(client: openai.OpenAI, speaker: Served) -> None:
    made: Any = client.responses.create(
        model="demo", input="hi", instructions="Be kind.", metadata={"a": "b"}, temperature=0.5,
        max_output_tokens=16,
    )  # fmt: skip
    assert (made.output_text, made.status, made.store) == (TEXT, "completed", True)
    assert made.usage is not None
    assert (made.usage.input_tokens, made.usage.output_tokens) == (7, 5)
    assert made.usage.input_tokens_details.cached_tokens == 3
    work: Any = speaker.workers.jobs[-1]
    assert [each.content for each in work.messages] == ["Be kind.", "hi"]
    assert (work.sampling.max_tokens, work.sampling.temperature) == (16, 0.5)
    assert client.responses.retrieve(made.id).model_dump() == made.model_dump()
    [item] = client.responses.input_items.list(made.id).data
    assert item.type == "message"


def test_response_continues_the_previous_one_without_its_instructions(
    client: openai.OpenAI, speaker: Served
) -> None:
    first = client.responses.create(model="demo", input="one", instructions="Be kind.")
    second = client.responses.create(
        model="demo", input="two", previous_response_id=first.id, instructions="Be short."
    )
    client.responses.create(model="demo", input="three", previous_response_id=second.id)
    work: Any = speaker.workers.jobs[-1]
    assert [(each.role, each.content) for each in work.messages] == [
        ("user", "one"),
        ("assistant", TEXT),
        ("user", "two"),
        ("assistant", TEXT),
        ("user", "three"),
    ]
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="demo", input="four", previous_response_id=second.id)
    assert refused.value.param == "previous_response_id"


def test_response_that_is_not_to_be_stored_is_not(client: openai.OpenAI) -> None:
    made: Any = client.responses.create(model="demo", input="hi", store=False)
    assert made.store is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_response_stream_ends_with_the_response_that_is_kept(client: openai.OpenAI) -> None:
    with client.responses.stream(model="demo", input="!think !call", tools=[FUNCTION]) as stream:
        told = list(stream)
        final: Any = stream.get_final_response()
    kinds = [item.type for item in final.output]
    assert kinds == ["reasoning", "message", "function_call", "function_call"]
    text = "".join(each.delta for each in told if each.type == "response.output_text.delta")
    thought = "".join(each.delta for each in told if each.type == "response.reasoning_text.delta")
    assert (text, thought) == (TEXT, REASONING)
    assert [each.sequence_number for each in told if hasattr(each, "sequence_number")]
    kept: Any = client.responses.retrieve(final.id)
    assert kept.output_text == TEXT
    assert [item.id for item in kept.output] == [item.id for item in final.output]


def test_function_call_of_a_response_round_trips(client: openai.OpenAI, speaker: Served) -> None:
    items: list[Any] = [{"role": "user", "content": "!think !call"}]
    first = client.responses.create(
        model="demo", input=items, tools=[FUNCTION], tool_choice="required"
    )
    calls = [item for item in first.output if item.type == "function_call"]
    assert [each.arguments for each in calls] == ['{"city":"Łódź"}', "{}"]
    items += first.output
    items += [
        {"type": "function_call_output", "call_id": each.call_id, "output": f"result {number}"}
        for number, each in enumerate(calls)
    ]
    second = client.responses.create(model="demo", input=items, tools=[FUNCTION], store=False)
    assert second.output_text == TEXT
    work: Any = speaker.workers.jobs[-1]
    _, assistant, *told = work.messages
    assert (assistant.content, assistant.reasoning) == (TEXT, REASONING)
    assert [each.id for each in assistant.tool_calls] == ["call-1", "call-2"]
    assert [(each.tool_call_id, each.content) for each in told] == [
        ("call-1", "result 0"),
        ("call-2", "result 1"),
    ]
    by_reference = [
        items[0],
        *({"type": "item_reference", "id": item.id} for item in first.output),
        *items[-2:],
    ]
    client.responses.create(model="demo", input=by_reference, store=False)
    again: Any = speaker.workers.jobs[-1]
    assert again.messages == work.messages


def test_background_response_is_polled_and_followed(client: openai.OpenAI) -> None:
    made: Any = client.responses.create(model="demo", input="hi", background=True)
    assert made.status == "queued"
    ended = _ended(client, made.id)
    assert (ended.status, ended.output_text, ended.background) == ("completed", TEXT, True)
    stream = client.responses.create(model="demo", input="hi", background=True, stream=True)
    told = list(stream)
    last: Any = told[-1]
    assert last.type == "response.completed"
    kept = client.responses.retrieve(last.response.id)
    assert kept.output_text == TEXT
    rest = list(client.responses.retrieve(kept.id, stream=True, starting_after=3))
    assert [each.type for each in rest] == [each.type for each in told[4:]]


def test_background_response_is_cancelled(client: openai.OpenAI) -> None:
    made = client.responses.create(model="demo", input="!wait", background=True)
    assert client.responses.cancel(made.id).status == "cancelled"
    assert client.responses.cancel(made.id).status == "cancelled"
    assert client.responses.retrieve(made.id).status == "cancelled"
    foreground = client.responses.create(model="demo", input="hi")
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(foreground.id)
    other = client.responses.create(model="demo", input="!wait", background=True)
    client.responses.delete(other.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.cancel(other.id)


def test_background_response_that_fails_says_why(client: openai.OpenAI) -> None:
    made = client.responses.create(model="demo", input="!refuse", background=True)
    ended = _ended(client, made.id)
    assert ended.status == "failed"
    assert ended.error is not None
    assert "prompt is too long" in ended.error.message
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model="demo", input="a", previous_response_id=made.id)
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="demo", input="a", background=True, store=False)
    assert refused.value.param == "background"


def test_responses_are_their_key_s_alone(client: openai.OpenAI, speaker: Served) -> None:
    made = client.responses.create(model="demo", input="hi")
    with _client(speaker, "admin") as admin:
        assert admin.responses.retrieve(made.id).id == made.id
        foreign = admin.responses.create(model="demo", input="hi")
    for ask in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError):
            ask(foreign.id)
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model="demo", input="a", previous_response_id=foreign.id)
    reference: Any = [{"type": "item_reference", "id": foreign.output[0].id}]
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model="demo", input=reference)


def test_response_is_followed_no_longer_than_the_follower_s_key_lives(
    client: openai.OpenAI, speaker: Served
) -> None:
    made = client.responses.create(model="demo", input="!wait", background=True)
    keys, admin = f"{speaker.url}/api/v1/keys", speaker.headers("admin")
    key = httpx.post(keys, json={"name": "n", "scopes": ["admin"]}, headers=admin).json()
    path = f"{speaker.url}/v1/responses/{made.id}?stream=true"
    headers = {"authorization": f"Bearer {key['key']}"}
    with httpx.stream("GET", path, headers=headers, timeout=20) as response:
        told = iter_events(response.iter_lines())
        assert next(told)[0] == "response.created"
        httpx.delete(f"{keys}/{key['id']}", headers=admin)
        assert "response.completed" not in [name for name, _ in told]
    assert client.responses.retrieve(made.id).status == "in_progress"
    assert client.responses.cancel(made.id).status == "cancelled"


def test_input_items_come_in_pages(client: openai.OpenAI) -> None:
    items: list[Any] = [{"role": "user", "content": str(number)} for number in range(5)]
    made = client.responses.create(model="demo", input=items)
    page: Any = client.responses.input_items.list(made.id, limit=2, order="asc")
    assert len(page.data) == 2
    assert [each.content[0].text for each in page] == ["0", "1", "2", "3", "4"]
    newest: Any = client.responses.input_items.list(made.id, limit=1).data[0]
    assert newest.content[0].text == "4"
    with pytest.raises(openai.BadRequestError):
        client.responses.input_items.list(made.id, limit=0)


def test_codex_first_request_is_streamed(speaker: Served) -> None:
    headers = {**speaker.headers("inference:text"), "originator": "codex_exec"}
    response = httpx.post(f"{speaker.url}/v1/responses", json=CODEX, headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["x-ignored-fields"] == "client_metadata, tools.web_search"
    told = events_of(response.text)
    assert (told[0][0], told[-1][0]) == ("response.created", "response.completed")
    work: Any = speaker.workers.jobs[-1]
    assert [each.role for each in work.messages] == ["system", "user", "user"]
    assert [each.name for each in work.tools] == ["exec_command", "multi_agent_v1.close_agent"]


def test_effort_and_verbosity_are_given_to_the_template(
    client: openai.OpenAI, speaker: Served
) -> None:
    client.responses.create(
        model="demo",
        input="a",
        reasoning={"effort": "medium"},
        text={"verbosity": "low"},
        truncation="auto",
    )
    work: Any = speaker.workers.jobs[-1]
    assert work.template_kwargs["reasoning_effort"] == "medium"
    assert work.drop_turns
    assert work.template_kwargs["verbosity"] == "low"


def test_ai_sdk_request_is_answered(speaker: Served) -> None:
    body = {
        "model": "demo",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
        "temperature": None, "include": None, "metadata": None, "tools": None, "user": "u",
        "truncation": None, "service_tier": "auto", "prompt_cache_retention": "24h",
    }  # fmt: skip
    headers = speaker.headers("inference:text")
    response = httpx.post(f"{speaker.url}/v1/responses", json=body, headers=headers)
    assert response.status_code == 200, response.text
    assert "x-ignored-fields" not in response.headers


def test_response_that_fails_late_says_so_in_its_stream(client: openai.OpenAI) -> None:
    told = list(client.responses.create(model="demo", input="!crash", stream=True))
    last: Any = told[-1]
    assert last.type == "response.failed"
    assert (last.response.status, last.response.error.message) == ("failed", "it died")
    assert client.responses.retrieve(last.response.id).status == "failed"


def test_input_tokens_are_counted(client: openai.OpenAI) -> None:
    first = client.responses.create(model="demo", input="one two")
    count = client.responses.input_tokens.count(
        model="demo", input="three", previous_response_id=first.id, instructions="four"
    )
    assert (count.object, count.input_tokens) == ("response.input_tokens", 4 + len(TEXT.split()))


def test_response_errors_are_openai_s(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.responses.create(model="nope", input="a")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.responses.create(model="demo", input="!refuse", stream=True)
    assert long.value.code == "context_length_exceeded"
    assert long.value.param in (None, "input")
    with pytest.raises(openai.BadRequestError) as empty:
        client.responses.create(model="demo", input=[])
    assert empty.value.param == "input"


def test_responses_outlive_the_server_and_those_that_ran_say_so(tmp_path: Path) -> None:
    with serve(tmp_path, speak) as served, _client(served) as client:
        kept = client.responses.create(model="demo", input="hi")
        running = client.responses.create(model="demo", input="!wait", background=True)
        eventually(lambda: client.responses.retrieve(running.id).status == "in_progress")
        keys = served.keys
    with serve(tmp_path, speak) as served:
        served.keys.update(keys)
        with _client(served) as client:
            assert client.responses.retrieve(kept.id).output_text == TEXT
            lost = client.responses.retrieve(running.id)
            assert lost.status == "failed"
            client.responses.create(model="demo", input="on", previous_response_id=kept.id)
