"""Requests name their session by a header, or by a field that their surface has for it."""

from typing import Any

import msgspec
import pytest

from bitinglip.wire.anthropic.messages import MessagesRequest
from bitinglip.wire.job_context import MOST_SESSION_NAME, named_session
from bitinglip.wire.parse import parse
from bitinglip.wire.text.openai import ChatCompletionRequest
from tests.support.jobs import job_context

_CHAT = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}


def session(model: Any, header: str | None = None, **fields: Any) -> str | None:
    body = parse(model, msgspec.json.encode({**_CHAT, **fields}))
    context = msgspec.structs.replace(job_context(), session=header)
    named: str | None = body.to_job(context).session
    return named


def test_session_is_the_header_s_or_that_of_the_surface() -> None:
    assert session(ChatCompletionRequest) is None
    assert session(ChatCompletionRequest, prompt_cache_key="s") == "s"
    assert session(ChatCompletionRequest, "header", prompt_cache_key="s") == "header"
    assert session(MessagesRequest, metadata={"user_id": "u"}) == "u"
    assert session(MessagesRequest, "header", metadata={"user_id": "u"}) == "header"


@pytest.mark.parametrize("label", [{"a": 1}, 7, "", "x" * 300, None])
def test_session_that_is_invalid_is_a_label(label: Any) -> None:
    assert session(ChatCompletionRequest, prompt_cache_key=label) is None
    assert session(MessagesRequest, metadata=label) is None
    assert session(MessagesRequest, metadata={"user_id": label}) is None


def test_session_has_a_bound() -> None:
    assert named_session("x" * MOST_SESSION_NAME) is not None
    assert named_session("x" * (MOST_SESSION_NAME + 1)) is None
