"""Streams of OpenAI's surfaces, chunk by chunk."""

import json
from typing import Any

import pytest

from bitinglip.scheduling.event_log import EventLog
from bitinglip.scheduling.job import Job
from bitinglip.wire.text.openai_view import ChatView, CompletionView
from workers import protocol

SAMPLING = protocol.Sampling(max_tokens=8)
TEXTS = ["a", "", 'quo"te', "\\", "\0", "line\nbreak", "\u2028", "é😀", "</s>", "\x7f"]


def _view(kind: type[ChatView] | type[CompletionView], *, usage: bool) -> ChatView | CompletionView:
    work = protocol.TextJob(id="task-1", prompt="x", sampling=SAMPLING, stream=True)
    return kind(EventLog(Job(work=work, model="org/m", key_id="k")), "r", include_usage=usage)


def _chunks(data: bytes) -> list[dict[str, Any]]:
    events = data.decode().split("\n\n")
    assert events.pop() == ""
    return [json.loads(event.removeprefix("data: ")) for event in events]


@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize("kind", [ChatView, CompletionView])
def test_stream_shows_each_text_in_a_chunk_like_all_others(
    kind: type[ChatView] | type[CompletionView], *, usage: bool
) -> None:
    view = _view(kind, usage=usage)
    first = _chunks(view.render(protocol.TextDelta(id="task-1", text="first", index=0)))
    assert len(first) == (2 if kind is ChatView else 1)
    for index, text in enumerate(TEXTS):
        token = protocol.TextDelta(id="task-1", text=text, index=index)
        [chunk] = _chunks(view.render(token))
        choice = view.token_choice(token)
        assert chunk == {**first[-1], "choices": [choice]}
        shown = choice["delta"]["content"] if kind is ChatView else choice["text"]
        assert shown == text
        assert ("usage" in chunk) == usage
