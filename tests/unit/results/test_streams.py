"""The bytes of streams, view by view."""

import json
from typing import Any, cast

import pytest

from bitinglip.results.streams import DONE, KEEP_ALIVE, chunks, comment, sse
from bitinglip.scheduling.event_log import Event, EventLog, Loading, Queued
from bitinglip.scheduling.job import Job
from bitinglip.wire.events import NativeView
from bitinglip.wire.text.openai_view import ChatView, CompletionView
from tests.support.sse import events_of
from workers import protocol

LOGPROB = protocol.TokenLogprob(token="hé", id=5, logprob=-0.5, top=(("a", 6, -1.0),))


def event_log(**sampling: Any) -> EventLog:
    work = protocol.TextJob(
        id="task-1", prompt="p", sampling=protocol.Sampling(max_tokens=5, **sampling)
    )
    return EventLog(Job(work=work, model="m", key_id="k"))


def done(**more: Any) -> protocol.TextDone:
    choice = protocol.TextChoice(text="a b", finish_reason="stop", **more)
    return protocol.TextDone(id="task-1", choices=(choice,), prompt_tokens=3, completion_tokens=2)


def token(text: str, **more: Any) -> protocol.TextDelta:
    return protocol.TextDelta(id="task-1", text=text, index=0, **more)


def native(box: EventLog) -> NativeView:
    """Return a view of a job that makes no files."""
    return NativeView(box, "r-1", cast("Any", None))


def test_sse_event_is_one_data_line() -> None:
    assert sse(b"{}") == b"data: {}\n\n"
    assert sse(b"{}", "token") == b"event: token\ndata: {}\n\n"


def test_native_stream_has_its_events() -> None:
    box = event_log()
    view = native(box)
    data = b""
    history: list[Event] = [
        Queued(2, 1.5),
        Loading(0.5),
        protocol.Started(id="task-1", prompt_tokens=3),
        token("a\nb"),
        done(),
    ]
    for event in history:
        box.put(event)
        data += view.render(event)
    seen = events_of(data)
    assert [name for name, _ in seen] == ["queued", "loading", "started", "token", "completed"]
    assert seen[0][1] == {"position": 2, "eta": 1.5}
    assert seen[1][1] == {"progress": 0.5}
    assert seen[3][1] == {"text": "a\nb", "index": 0}
    answer = seen[4][1]
    assert answer["status"] == "completed"
    assert answer["result"] == {"text": "a b", "finish_reason": "stop"}
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert answer["created_at"].endswith("Z")


def test_native_stream_has_logprobs() -> None:
    box = event_log(logprobs=1)
    view = native(box)
    expected = {
        "token": "hé",
        "id": 5,
        "logprob": -0.5,
        "top": [{"token": "a", "id": 6, "logprob": -1.0}],
    }
    assert events_of(view.render(token("x", logprobs=(LOGPROB,))))[0][1]["logprobs"] == [expected]
    box.put(done(logprobs=(LOGPROB,)))
    assert json.loads(view.body())["result"]["logprobs"] == [expected]


def test_native_stream_ends_by_its_final_event() -> None:
    view = native(event_log())
    failed = protocol.Failed(id="task-1", code="OUT_OF_MEMORY", message="no")
    [(name, body)] = events_of(view.render(failed))
    assert name == "failed"
    assert body["error"]["code"] == "OUT_OF_MEMORY"
    assert body["error"]["request_id"] == "r-1"
    [(name, body)] = events_of(view.render(protocol.Cancelled(id="task-1")))
    assert (name, body["status"]) == ("cancelled", "cancelled")


def test_chat_stream_has_chunks() -> None:
    view = ChatView(event_log(), "r-1")
    assert view.render(Queued(1)) == b""
    assert view.render(protocol.Started(id="task-1")) == b""
    data = view.render(token("a")) + view.render(token(" b")) + view.render(done())
    assert data.endswith(DONE)
    bodies = [body for _, body in events_of(data)][:-1]
    choices = [body["choices"][0] for body in bodies]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": ""},
        {"content": "a"},
        {"content": " b"},
        {},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]
    assert {body["object"] for body in bodies} == {"chat.completion.chunk"}
    assert len({body["id"] for body in bodies}) == 1
    assert "usage" not in bodies[0]


def test_chat_stream_ends_with_usage_when_asked() -> None:
    view = ChatView(event_log(), "r-1", include_usage=True)
    bodies = [body for _, body in events_of(view.render(token("a")) + view.render(done()))]
    assert bodies[-1] == "[DONE]"
    assert bodies[-2]["choices"] == []
    assert bodies[-2]["usage"]["total_tokens"] == 5
    assert all(body["usage"] is None for body in bodies[:-2])


def test_openai_stream_that_failed_has_no_done() -> None:
    view = ChatView(event_log(), "r-1")
    data = view.render(token("a"))
    data += view.render(protocol.Failed(id="task-1", code="WORKER_CRASHED", message="no"))
    assert DONE not in data
    assert events_of(data)[-1][1]["error"]["code"] == "worker_crashed"


def test_chat_answer_is_whole() -> None:
    box = event_log(logprobs=1)
    box.put(done(logprobs=(LOGPROB,)))
    body = json.loads(ChatView(box, "r-1").body())
    choice = body["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "a b", "refusal": None}
    [logprob] = choice["logprobs"]["content"]
    assert logprob["bytes"] == [104, 195, 169]
    assert logprob["top_logprobs"] == [{"token": "a", "logprob": -1.0, "bytes": [97]}]


def test_completion_stream_has_chunks() -> None:
    view = CompletionView(event_log(logprobs=1), "r-1")
    data = view.render(token("hé", logprobs=(LOGPROB,)))
    data += view.render(token("hé", logprobs=(LOGPROB,))) + view.render(done())
    bodies = [body for _, body in events_of(data)][:-1]
    assert [body["choices"][0]["text"] for body in bodies] == ["hé", "hé", ""]
    assert bodies[1]["choices"][0]["logprobs"] == {
        "tokens": ["hé"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"a": -1.0, "hé": -0.5}],
        "text_offset": [2],
    }
    box = event_log()
    box.put(done())
    whole = json.loads(CompletionView(box, "r-1").body())
    assert whole["object"] == "text_completion"
    assert whole["choices"][0]["text"] == "a b"
    assert whole["choices"][0]["logprobs"] is None


async def collect(box: EventLog) -> list[tuple[bytes, bool]]:
    return [chunk async for chunk in chunks(box, ChatView(box, "r-1"))]


def test_sse_events_that_came_together_are_written_together() -> None:
    import asyncio

    box = event_log()
    history: list[Event] = [Queued(1), token("a"), token(" b"), done()]
    for event in history:
        box.put(event)
    [(data, last)] = asyncio.run(collect(box))
    assert last
    assert data.count(b"data: ") == 5


def test_comment_of_a_silent_stream_says_what_its_job_waits_for() -> None:
    box = event_log()
    assert comment(None) == comment(box) == KEEP_ALIVE
    box.put(Queued(3, 1.5))
    assert comment(box) == b": queued 3\n\n"
    box.put(Loading(0.404))
    assert comment(box) == b": loading 40%\n\n"
    box.dispatch("w/0")
    assert comment(box) == KEEP_ALIVE


@pytest.mark.parametrize("text", ["\u2028", "\r\n", "\n\nevent: x", "\0"])
def test_sse_event_is_not_ended_by_its_text(text: str) -> None:
    [(_, body)] = events_of(native(event_log()).render(token(text)))
    assert body["text"] == text
