"""JSON's escapes in the arguments of calls hide nothing from the guard, however they are cut."""

import asyncio
import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from bitinglip.guard.escapes import Escapes
from bitinglip.guard.guard import Guard
from bitinglip.guard.modes import Modes
from bitinglip.guard.scanner import Piece
from bitinglip.guard.watch import Watch
from bitinglip.settings import Settings
from bitinglip.settings.guard import Guard as GuardSettings
from bitinglip.telemetry.health import Health
from tests.unit.guard.test_choices import call, guard
from workers import protocol

AT = r'{"to": "john\u0040example.com"}'
CASES = {
    AT: '{"to": "[EMAIL]"}',
    r'{"a": "\u006aohn@example.com\ud83d\ude00"}': r'{"a": "[EMAIL]\ud83d\ude00"}',
    r'{"to": "hi\njohn@example.com\nbye \\"}': r'{"to": "hi\n[EMAIL]\nbye \\"}',
    r'{"to": "\\njohn@example.com"}': r'{"to": "\\[EMAIL]"}',
    r'{"path": "C:\\u0040 \/ \u12", "x': r'{"path": "C:\\u0040 \/ \u12", "x',
}


def parts(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(each % (len(text) + 1) for each in cuts)})
    return [text[start:end] for start, end in pairwise(places)]


@given(st.text() | st.text(alphabet='\\u0dDaAbcdnt"/ 48'), st.lists(st.integers(0, 99), max_size=6))
@settings(max_examples=150, deadline=None)
def test_escapes_read_the_same_however_they_are_cut(text: str, cuts: list[int]) -> None:
    whole = Escapes()
    read = whole.feed(text, last=True)
    assert whole.shown([Piece(read, len(read))]) == text
    cut = Escapes()
    pieces = [cut.feed(each) for each in parts(text, cuts)]
    pieces.append(cut.feed("", last=True))
    assert "".join(pieces) == read
    assert "".join(cut.shown([Piece(each, len(each))]) for each in pieces) == text


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])), st.booleans())
@settings(max_examples=50, deadline=None)
def test_escapes_read_as_json_does(text: str, ascii_only: bool) -> None:
    written = json.dumps(text, ensure_ascii=ascii_only)
    assert Escapes().feed(written, last=True) == f'"{text}"'


@pytest.mark.parametrize("arguments", CASES)
def test_escapes_hide_nothing_in_calls_that_a_model_makes(arguments: str) -> None:
    for cut in range(len(arguments)):
        watched = guard()
        shown = ""
        for part in (arguments[:cut], arguments[cut:]):
            for event in watched.take(
                protocol.TextDelta(id="t", text="", index=0, tool_calls=(call(part),))
            ):
                assert isinstance(event, protocol.TextDelta)
                shown += "".join(each.arguments for each in event.tool_calls)
        made = protocol.ToolCall(id="c", name="send", arguments=arguments)
        choice = protocol.TextChoice(text="", finish_reason="tool_calls", tool_calls=(made,))
        done = protocol.TextDone(id="t", choices=(choice,), prompt_tokens=1, completion_tokens=1)
        *rest, last = watched.take(done)
        for event in rest:
            assert isinstance(event, protocol.TextDelta)
            shown += "".join(each.arguments for each in event.tool_calls)
        assert isinstance(last, protocol.TextDone)
        assert shown == last.choices[0].tool_calls[0].arguments == CASES[arguments]


@pytest.mark.parametrize("arguments", CASES)
def test_escapes_hide_nothing_in_calls_that_a_client_sends(arguments: str) -> None:
    made = protocol.ToolCall(id="c", name="send", arguments=arguments)
    work = protocol.TextJob(
        id="t",
        messages=(protocol.ChatMessage("assistant", "", tool_calls=(made,)),),
        sampling=protocol.Sampling(max_tokens=1),
    )
    own = Settings(guard=GuardSettings(input="redact"))
    checker = Guard(own, Watch(CollectorRegistry(), Health(), own.guard))
    checked = asyncio.run(checker.checked(work, Modes(input="redact")))
    assert isinstance(checked, protocol.TextJob)
    assert checked.messages is not None
    assert checked.messages[0].tool_calls[0].arguments == CASES[arguments]
