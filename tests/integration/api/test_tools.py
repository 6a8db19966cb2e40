"""Calls of tools by the official client: families' answers, cut at every character, over HTTP."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.support.api_server import Served, serve
from tests.unit.engines.text.parsing.samples import SAMPLES, TOOLS, Sample
from tests.unit.engines.text.parsing.test_answer import parser
from workers import protocol
from workers.engines.text.history import template_tools

CALLING = [
    (number, sample) for number, sample in enumerate(SAMPLES) if sample.calls and sample.family
]
FUNCTIONS: Any = template_tools(TOOLS)


async def say(job: protocol.Job) -> AsyncIterator[protocol.JobEvent]:
    """Answer with the sample that the first message names, a character at a time."""
    assert isinstance(job, protocol.TextJob)
    messages = job.messages or ()
    if len(messages) > 1:  # the client has sent the answer back
        yield _whole(job, [f"{each.role}:{each.content}" for each in messages])
        return
    sample = SAMPLES[int(messages[0].content)]
    answer = parser(sample.family, sample.begun, job.tools)
    pieces = [answer.push(each) for each in sample.answer]
    pieces.append(answer.end(cut=False))
    made: list[protocol.ToolCall] = []
    for index, piece in enumerate(pieces):
        calls = tuple(
            protocol.ToolCallDelta(index=place, id=c.id, name=c.name, arguments=c.arguments)
            for place, c in enumerate(piece.tool_calls, len(made))
        )
        made += piece.tool_calls
        if job.stream and any(piece):
            yield protocol.TextDelta(
                id=job.id,
                text=piece.text,
                index=index,
                reasoning=piece.reasoning,
                tool_calls=calls,
            )
    choice = protocol.TextChoice(
        text="".join(each.text for each in pieces),
        finish_reason="tool_calls" if made else "stop",
        reasoning="".join(each.reasoning for each in pieces),
        tool_calls=tuple(made),
    )
    yield protocol.TextDone(
        id=job.id, choices=(choice,), prompt_tokens=1, completion_tokens=len(pieces)
    )


def _whole(job: protocol.TextJob, lines: list[str]) -> protocol.TextDone:
    choice = protocol.TextChoice(text="\n".join(lines), finish_reason="stop")
    return protocol.TextDone(id=job.id, choices=(choice,), prompt_tokens=1, completion_tokens=1)


@pytest.fixture(scope="module")
def sayer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("sayer"), say) as served:
        yield served


@pytest.fixture(scope="module")
def client(sayer: Served) -> Iterator[openai.OpenAI]:
    key = sayer.keys["inference:text"]
    url = f"{sayer.url}/v1"
    with openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=60) as client:
        yield client


def ask(number: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": str(number)}]
    return {"model": "demo", "messages": messages, "tools": FUNCTIONS}


@pytest.mark.parametrize(("number", "sample"), CALLING, ids=[f"{n}-{s.family}" for n, s in CALLING])
def test_tool_calls_of_each_family_reach_the_client(
    client: openai.OpenAI, number: int, sample: Sample
) -> None:
    choice = client.chat.completions.create(**ask(number)).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert (choice.message.content or "") == sample.content
    calls = choice.message.tool_calls or []
    assert [(c.function.name, json.loads(c.function.arguments)) for c in calls] == [*sample.calls]
    with client.chat.completions.stream(**ask(number)) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == "tool_calls"
    assert (streamed.message.content or "") == sample.content
    told = [(c.function.name, c.function.arguments) for c in streamed.message.tool_calls or []]
    assert [(name, json.loads(text)) for name, text in told] == [*sample.calls]
    reasoning = "".join(
        getattr(chunk.choices[0].delta, "reasoning_content", None) or ""
        for chunk in client.chat.completions.create(**ask(number), stream=True)
        if chunk.choices
    )
    assert reasoning == sample.reasoning


def test_tool_call_deltas_say_id_type_and_name_each_time(client: openai.OpenAI) -> None:
    number = next(number for number, sample in CALLING if len(sample.calls) > 1)
    deltas = [
        call
        for chunk in client.chat.completions.create(**ask(number), stream=True)
        for call in chunk.choices[0].delta.tool_calls or ()
    ]
    assert [each.index for each in deltas] == [0, 1]
    for each in deltas:
        assert each.id
        assert each.type == "function"
        assert each.function is not None
        assert each.function.name


def test_tool_turns_may_be_sent_back_as_the_client_dumps_them(client: openai.OpenAI) -> None:
    number, _ = CALLING[0]
    asked = ask(number)
    message = client.chat.completions.create(**asked).choices[0].message
    [call, *_] = message.tool_calls or []
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    for turn in (message, message.model_dump(), message.to_dict()):
        history: Any = [*asked["messages"], turn, result]
        again = client.chat.completions.create(**{**asked, "messages": history})
        assert "tool:sunny" in (again.choices[0].message.content or "")


def test_template_switches_that_are_unknown_are_named(sayer: Served) -> None:
    headers = sayer.headers("inference:text")
    body = {"model": "demo", "messages": [{"role": "user", "content": "0"}], "odd": 1}
    with httpx.Client(base_url=sayer.url, headers=headers, timeout=60) as http:
        said = http.post("/v1/chat/completions", json={**body, "reasoning_effort": "low"})
        assert said.status_code == 200
        assert said.headers["x-ignored-fields"] == "odd, reasoning_effort"
        del body["odd"]
        native = {**body, "enable_thinking": False}
        refused = http.post("/api/v1/inference/text-generation", json=native)
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "UNSUPPORTED_PARAMETER"
        assert refused.json()["error"]["param"] == "enable_thinking"
