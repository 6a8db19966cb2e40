"""Choices and several prompts, from the request to the views of all surfaces."""

import json
from typing import Any, cast

import msgspec
import pytest

from bitinglip import errors
from bitinglip.scheduling.event_log import EventLog
from bitinglip.scheduling.job import Job
from bitinglip.wire.events import NativeView
from bitinglip.wire.parse import parse
from bitinglip.wire.text.completions import CompletionRequest
from bitinglip.wire.text.native import TextGenerationRequest
from bitinglip.wire.text.openai import ChatCompletionRequest
from bitinglip.wire.text.openai_view import ChatView, CompletionView
from tests.support.jobs import job_context
from workers import protocol

NATIVE = {"model": "m", "prompt": "p"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def message_of(model: Any, body: dict[str, Any], **more: Any) -> protocol.TextJob:
    work = parse(model, json.dumps({**body, **more}).encode()).to_job(job_context()).work
    assert isinstance(work, protocol.TextJob)
    return work


def refused(model: Any, body: dict[str, Any], **more: Any) -> errors.InvalidRequest:
    with pytest.raises(errors.InvalidRequest) as caught:
        message_of(model, body, **more)
    return caught.value


# ---- requests --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "prompt", "prompts"),
    [
        ("a", "a", ()),
        (["a"], "a", ()),
        (["a", "b"], None, ("a", "b")),
        ([1, 2], None, ((1, 2),)),
        ([[1, 2], [3]], None, ((1, 2), (3,))),
        (["a", [3]], None, ("a", (3,))),
        ([[]], None, ((),)),
    ],
)
def test_prompts_of_all_forms_reach_the_worker(
    given: Any, prompt: str | None, prompts: tuple[Any, ...]
) -> None:
    work = message_of(CompletionRequest, NATIVE, prompt=given, n=2, echo=True, best_of=3)
    assert (work.prompt, work.prompts) == (prompt, prompts)
    assert (work.n, work.best_of, work.echo) == (2, 3, True)
    count = max(1, len(prompts))
    assert (work.choices, work.sequences) == (2 * count, 3 * count)


@pytest.mark.parametrize(
    "given", [[], None, 5, {}, [True], [-1], [2**31], [1.5], [["a"]], [[1, "a"]], ["a"] * 129]
)
def test_prompts_of_other_forms_are_refused(given: Any) -> None:
    assert (refused(CompletionRequest, NATIVE, prompt=given).param or "").startswith("prompt")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"n": 64, "prompt": ["a", "b", "c"]}, "n"),
        ({"best_of": 65, "prompt": ["a", "b"]}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"max_tokens": 500_001, "n": 2}, "max_tokens"),
        ({"max_tokens": 10_000, "n": 2, "logprobs": 20}, "max_tokens"),
    ],
)
def test_choices_beyond_what_an_answer_holds_are_refused(fields: Any, param: str) -> None:
    assert refused(CompletionRequest, NATIVE, **fields).param == param


def test_choices_share_the_tokens_of_an_answer_where_none_were_asked_for() -> None:
    assert message_of(ChatCompletionRequest, CHAT, n=128).sampling.max_tokens == 7812
    assert message_of(TextGenerationRequest, NATIVE, n=128).sampling.max_tokens == 512
    assert message_of(CompletionRequest, NATIVE, max_tokens=0, echo=True).sampling.max_tokens == 0


# ---- views -----------------------------------------------------------------------------------


def event_log(**fields: Any) -> EventLog:
    work = protocol.TextJob(
        id="task-1", prompt="x", sampling=protocol.Sampling(max_tokens=8, logprobs=1), n=2
    )
    if fields.pop("plain", False):
        work = msgspec.structs.replace(work, sampling=protocol.Sampling(max_tokens=8))
    return EventLog(Job(work=msgspec.structs.replace(work, **fields), model="m", key_id="k"))


def scored(text: str, logprob: float | None = -0.5) -> protocol.TokenLogprob:
    top = () if logprob is None else (("best", 1, -0.1),)
    return protocol.TokenLogprob(token=text, id=7, logprob=logprob, top=top)


DELTAS = [
    protocol.TextDelta(id="task-1", text="a", index=0, choice=1, logprobs=(scored("a"),)),
    protocol.TextDelta(id="task-1", text="b", index=0, choice=0, logprobs=(scored("b"),)),
    protocol.TextDelta(id="task-1", text="cd", index=1, choice=1, logprobs=(scored("cd"),)),
]
DONE = protocol.TextDone(
    id="task-1",
    choices=(
        protocol.TextChoice(text="b", finish_reason="stop", logprobs=(scored("b"),)),
        protocol.TextChoice(
            text="acd", finish_reason="length", logprobs=(scored("a"), scored("cd"))
        ),
    ),
    prompt_tokens=3,
    completion_tokens=3,
)


def chunks(view: ChatView | CompletionView) -> list[dict[str, Any]]:
    told: list[protocol.JobEvent] = [*DELTAS, DONE]
    data = b"".join(view.render(event) for event in told).decode()
    events = data.removesuffix("\n\n").split("\n\n")
    assert events.pop() == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


@pytest.mark.parametrize("plain", [True, False])
def test_chat_stream_has_one_role_and_one_reason_for_each_choice(plain: bool) -> None:
    choices = [each["choices"][0] for each in chunks(ChatView(event_log(plain=plain), "r"))]
    roles = [each["index"] for each in choices if "role" in each["delta"]]
    reasons = [(each["index"], each["finish_reason"]) for each in choices if each["finish_reason"]]
    texts = [(c["index"], c["delta"]["content"]) for c in choices if c["delta"].get("content")]
    assert roles == [0, 1]
    assert texts == [(1, "a"), (0, "b"), (1, "cd")]
    assert reasons == [(0, "stop"), (1, "length")]
    assert choices[-2:] == [each for each in choices if each["finish_reason"]]


def test_completion_stream_counts_the_offsets_of_each_choice() -> None:
    choices = [each["choices"][0] for each in chunks(CompletionView(event_log(), "r"))]
    assert [(each["index"], each["text"]) for each in choices] == [
        (1, "a"),
        (0, "b"),
        (1, "cd"),
        (0, ""),
        (1, ""),
    ]
    assert [each["logprobs"]["text_offset"] for each in choices[:3]] == [[0], [0], [1]]


@pytest.mark.parametrize("view", [ChatView, CompletionView])
def test_body_holds_all_choices(view: Any) -> None:
    log = event_log()
    log.put(DONE)
    body = json.loads(view(log, "r").body())
    assert [each["index"] for each in body["choices"]] == [0, 1]
    assert [each["finish_reason"] for each in body["choices"]] == ["stop", "length"]
    assert body["usage"]["completion_tokens"] == 3


def test_completion_of_an_echoed_prompt_has_no_score_for_its_first_token() -> None:
    log = event_log(n=1)
    scores = (scored("x", None), scored("y", -9999.0))
    choice = protocol.TextChoice(text="xy", finish_reason="length", logprobs=scores)
    log.put(msgspec.structs.replace(DONE, choices=(choice,)))
    [shown] = json.loads(CompletionView(log, "r").body())["choices"]
    assert shown["logprobs"] == {
        "tokens": ["x", "y"],
        "token_logprobs": [None, -9999.0],
        "top_logprobs": [None, {"best": -0.1, "y": -9999.0}],
        "text_offset": [0, 1],
    }


def test_native_answer_has_choices_only_of_several() -> None:
    several, one = event_log(), event_log(n=1)
    several.put(DONE)
    one.put(msgspec.structs.replace(DONE, choices=DONE.choices[:1]))
    files = cast("Any", None)  # text makes none
    result = json.loads(NativeView(several, "r", files).body())["result"]
    assert [each["text"] for each in result["choices"]] == ["b", "acd"]
    assert [each["index"] for each in result["choices"]] == [0, 1]
    assert (result["text"], result["finish_reason"]) == ("b", "stop")
    alone = json.loads(NativeView(one, "r", files).body())["result"]
    assert set(alone) == {"text", "finish_reason", "logprobs"}
    told = NativeView(several, "r", files).event(DELTAS[0])
    assert (told[0], json.loads(told[1])["choice"]) == ("token", 1)
    assert "choice" not in json.loads(NativeView(one, "r", files).event(DELTAS[1])[1])
