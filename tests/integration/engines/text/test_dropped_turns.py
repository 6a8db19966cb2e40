"""A conversation longer than the context loses its oldest turns, if its job lets them go."""

import pytest

from tests.integration.engines.text.test_prompt_ends import preprocessor
from tests.support.models.chat_tokenizers import CHATML
from workers.engines.base import Refused
from workers.engines.text.preprocess import Preprocessor
from workers.protocol import ChatMessage, Sampling, TextJob, ToolCall

SYSTEM = ChatMessage("system", "be kind")
CALL = ToolCall(id="c", name="f", arguments="{}")
CONTEXT = 500  #: tokens of the preprocessor's


@pytest.fixture(scope="module")
def prepared() -> Preprocessor:
    return preprocessor(CHATML)


def job(*messages: ChatMessage, drop: bool = True, most: int = 9) -> TextJob:
    return TextJob(
        id="a",
        messages=messages,
        sampling=Sampling(max_tokens=most),
        clip_max_tokens=True,
        drop_turns=drop,
    )


def turn(number: int, size: int = 60) -> list[ChatMessage]:
    """Return a user's message and the turns that answer it with the help of a tool."""
    return [
        ChatMessage("user", f"[{number}]" + "?" * size),
        ChatMessage("assistant", "", tool_calls=(CALL,)),
        ChatMessage("tool", f"({number})", tool_call_id="c"),
        ChatMessage("assistant", f"<{number}>" + "!" * size),
    ]


def shown(prepared: Preprocessor, asked: TextJob) -> tuple[str, int]:
    """Return the prompt of a job, and how many tokens may follow."""
    [prompt] = prepared.prepare(asked).prompts
    return prepared._decode(prompt.ids), prompt.max_tokens


@pytest.mark.parametrize("count", [1, 2, 9, 40])
def test_turns_that_have_no_room_are_dropped_whole_and_no_more(
    prepared: Preprocessor, count: int
) -> None:
    turns = [message for number in range(count) for message in turn(number)]
    last = ChatMessage("user", "what now?")
    text, most = shown(prepared, job(SYSTEM, *turns, last))
    assert "be kind" in text
    assert "what now?" in text
    kept = [number for number in range(count) if f"[{number}]" in text]
    assert kept == list(range(count - len(kept), count)), "the newest ones"
    assert all(f"({number})" in text and f"<{number}>" in text for number in kept)
    assert most == 9
    if len(kept) < count:  # one more would not have fitted
        more = [message for number in range(kept[0] - 1, count) for message in turn(number)]
        with pytest.raises(Refused, match="too long"):
            prepared.prepare(job(SYSTEM, *more, last, drop=False))


def test_turns_are_dropped_until_there_is_room_for_an_answer(prepared: Preprocessor) -> None:
    turns = [message for number in range(9) for message in turn(number)]
    _, most = shown(prepared, job(*turns, ChatMessage("user", "what now?"), most=10_000))
    assert most > CONTEXT // 8


def test_turn_that_is_too_long_alone_is_refused(prepared: Preprocessor) -> None:
    with pytest.raises(Refused, match="too long"):
        prepared.prepare(job(SYSTEM, *turn(0), ChatMessage("user", "?" * 2000)))
    nearly = ChatMessage("user", "?" * 400)
    text, most = shown(prepared, job(*turn(0), nearly, most=10_000))
    assert "[0]" not in text
    assert most > 0
