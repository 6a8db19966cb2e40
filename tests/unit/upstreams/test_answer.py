"""Chunks of an upstream, read as events."""

from typing import Any

import pytest

from bitinglip.upstreams.answer import AnswerReader, BadAnswer
from workers.protocol import Sampling, TextDelta, TextJob, ToolCall


def job(**fields: Any) -> TextJob:
    return TextJob(id="j", prompt="p", **{"sampling": Sampling(max_tokens=9), **fields})


def chunk(index: int = 0, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


def test_answer_s_choices_come_apart_and_add_up() -> None:
    reader = AnswerReader(job(n=2))
    events = []
    for each in (
        chunk(role="assistant", content=""),
        chunk(0, content="a"),
        chunk(1, content="x", reasoning_content="why"),
        chunk(0, content="b", finish="length"),
        chunk(1, finish="stop"),
        {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 5}},
    ):
        events += reader.take(each)
    told = [(e.choice, e.text, e.index) for e in events if isinstance(e, TextDelta)]
    assert told == [(0, "a", 0), (1, "x", 0), (0, "b", 1)]
    done = reader.done()
    assert [(c.text, c.reasoning, c.finish_reason) for c in done.choices] == [
        ("ab", "", "length"),
        ("x", "why", "stop"),
    ]
    assert (done.prompt_tokens, done.completion_tokens) == (4, 5)


def test_answer_of_a_completion_without_usage_is_counted_by_its_pieces() -> None:
    reader = AnswerReader(job(stream=False))
    for text, finish in (("a", None), ("b", None), ("", "stop")):
        assert not reader.take({"choices": [{"text": text, "finish_reason": finish}]})
    assert (reader.done().text, reader.done().completion_tokens) == ("ab", 2)


def test_answer_that_breaks_off_has_used_what_its_prompt_and_its_text_are_likely_to_have() -> None:
    """A client could leave before the last event, which alone tells the tokens."""
    reader = AnswerReader(job(sampling=Sampling(max_tokens=150)))
    assert reader.used == (0, 0), "no server has taken it"
    reader.begin(prompt_tokens=70)
    reader.take(chunk(content="a"))
    assert reader.used == (70, 1)
    reader.take(chunk(content="long " * 80))
    assert reader.used == (70, 100), "a server may send many tokens at once"
    reader.take(chunk(content="very long " * 80))
    assert reader.used == (70, 150), "an estimate is no more than what was asked for"
    reader.take({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 5}})
    assert reader.used == (4, 5)


def test_answer_s_calls_of_tools_are_joined_from_their_pieces() -> None:
    reader = AnswerReader(job())
    first = {"index": 0, "id": "c", "function": {"name": "look", "arguments": '{"a'}}
    rest = {"index": 0, "function": {"arguments": '": 1}'}}
    reader.take(chunk(tool_calls=[first]))
    (delta,) = reader.take(chunk(tool_calls=[rest]))
    assert isinstance(delta, TextDelta)
    assert (delta.tool_calls[0].name, delta.tool_calls[0].arguments) == ("look", '": 1}')
    reader.take(chunk(finish="tool_calls"))
    (choice,) = reader.done().choices
    assert choice.tool_calls == (ToolCall(id="c", name="look", arguments='{"a": 1}'),)


def _call(**function: Any) -> dict[str, Any]:
    return {"index": 0, "id": "c", "function": {"name": "look", **function}}


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        "text",
        None,
        {"choices": 5},
        {"choices": [5]},
        {"choices": [{"index": 9, "delta": {"content": "a"}}]},
        {"choices": [{"index": -1, "delta": {"content": "a"}}]},
        {"choices": [{"delta": {"content": 5}}]},
        {"choices": [{"index": True, "delta": {"content": "a"}}]},
        {"choices": [{"delta": {"tool_calls": [_call(arguments={"a": 1})]}}]},
        {"choices": [{"delta": {"tool_calls": [_call(), {"index": -1}]}}]},
        {"choices": [{"delta": {"tool_calls": [{"index": 3}]}}]},
        {"choices": [{"delta": {"tool_calls": [{"function": {"arguments": "a"}}]}}]},
    ],
)
def test_answer_of_another_form_is_told(wrong: Any) -> None:
    with pytest.raises(BadAnswer):
        AnswerReader(job()).take(wrong)


def test_answer_that_ends_early_is_no_answer() -> None:
    reader = AnswerReader(job())
    reader.take(chunk(content="a"))
    with pytest.raises(BadAnswer, match="before its end"):
        reader.done()


@pytest.mark.parametrize("stream", [True, False])
def test_answer_without_an_end_is_given_up(stream: bool) -> None:
    reader = AnswerReader(job(stream=stream, sampling=Sampling(max_tokens=1 << 20)))
    piece = chunk(content="a" * (1 << 20))
    for _ in range(15):
        reader.take(piece)
    with pytest.raises(BadAnswer, match="longer"):
        reader.take(piece)


def test_answer_of_endless_names_of_tools_is_given_up() -> None:
    reader = AnswerReader(job(sampling=Sampling(max_tokens=1 << 20)))

    def call(number: int) -> dict[str, Any]:
        named = {"index": number, "id": "c", "function": {"name": "n" * (1 << 20)}}
        return chunk(tool_calls=[named])

    for number in range(14):
        reader.take(call(number))
    with pytest.raises(BadAnswer, match="longer"):
        reader.take(call(14))
