"""Ends of prompts: a new turn, or a continuation of the last message."""

from typing import Any

import pytest

from bitinglip.wire.text.completions import CompletionRequest
from bitinglip.wire.text.native import TextGenerationRequest
from bitinglip.wire.text.openai import ChatCompletionRequest
from tests.unit.wire.test_requests import message_of, read, refused

USER = {"role": "user", "content": "Name a colour."}
SAID = {"role": "assistant", "content": "The colour is"}
CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}
SURFACES = [
    pytest.param(TextGenerationRequest, id="native"),
    pytest.param(ChatCompletionRequest, id="chat"),
]


def body(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages)}


@pytest.mark.parametrize("model", SURFACES)
def test_prompt_end_is_a_new_turn_unless_the_request_says_otherwise(model: Any) -> None:
    for more in ({}, {"continue_final_message": False}, {"add_generation_prompt": True}):
        job = message_of(read(model, body(USER, SAID), **more))
        assert (job.continue_final, job.generation_prompt) == (False, True)
    job = message_of(read(model, body(USER), add_generation_prompt=False))
    assert (job.continue_final, job.generation_prompt) == (False, False)
    for header in (None, False):
        goes_on = {"continue_final_message": True, "add_generation_prompt": header}
        assert message_of(read(model, body(USER, SAID), **goes_on)).continue_final


@pytest.mark.parametrize("model", SURFACES)
@pytest.mark.parametrize(
    ("last", "more", "param"),
    [
        (USER, {}, "continue_final_message"),
        (CALLED, {}, "continue_final_message"),
        (SAID, {"add_generation_prompt": True}, "add_generation_prompt"),
    ],
    ids=["user", "calls", "both"],
)
def test_prompt_end_that_contradicts_itself_is_refused(
    model: Any, last: dict[str, Any], more: dict[str, Any], param: str
) -> None:
    asked = {"continue_final_message": True, **more}
    assert refused(model, body(USER, last), **asked).param == param


def test_prompt_end_is_for_messages_and_special_tokens_for_prompts() -> None:
    prompt = {"model": "m", "prompt": "x"}
    for name in ("continue_final_message", "add_generation_prompt"):
        assert refused(TextGenerationRequest, prompt, **{name: False}).param == name
    surface = TextGenerationRequest
    assert refused(surface, body(USER), add_special_tokens=True).param == "add_special_tokens"


@pytest.mark.parametrize("model", [TextGenerationRequest, CompletionRequest])
def test_special_tokens_around_a_prompt_are_added_unless_the_request_says_no(model: Any) -> None:
    prompt = {"model": "m", "prompt": "x"}
    assert message_of(read(model, prompt)).special_tokens
    assert message_of(read(model, prompt, add_special_tokens=True)).special_tokens
    assert not message_of(read(model, prompt, add_special_tokens=False)).special_tokens
