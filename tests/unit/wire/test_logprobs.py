"""Logprobs of one answer: as many as it can hold, counted before anything is computed."""

import json
from typing import Any

import pytest

from bitinglip import errors
from bitinglip.settings import Model, SamplingDefaults
from bitinglip.wire.parse import parse
from bitinglip.wire.text.completions import CompletionRequest
from bitinglip.wire.text.native import TextGenerationRequest
from bitinglip.wire.text.openai import ChatCompletionRequest
from tests.support.jobs import job_context
from workers.protocol import TextJob
from workers.protocol.bounds import MOST_LOGPROBS

PROMPT = {"model": "m", "prompt": "p"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
MOST = MOST_LOGPROBS // 21  #: tokens with 20 alternatives each


def max_tokens(request: Any, body: dict[str, Any], own: Model | None = None) -> int:
    """Return the number of tokens that a worker is asked for."""
    work = parse(request, json.dumps(body).encode()).to_job(job_context(own)).work
    assert isinstance(work, TextJob)
    return work.sampling.max_tokens


@pytest.mark.parametrize(
    ("request_type", "body", "logprobs"),
    [
        (TextGenerationRequest, PROMPT, {"logprobs": 20}),
        (ChatCompletionRequest, CHAT, {"logprobs": True, "top_logprobs": 20}),
        (CompletionRequest, PROMPT, {"logprobs": 20}),
    ],
)
def test_logprobs_of_one_answer_are_bounded(
    request_type: Any, body: dict[str, Any], logprobs: dict[str, Any]
) -> None:
    assert max_tokens(request_type, {**body, **logprobs, "max_tokens": MOST}) == MOST
    with pytest.raises(errors.InvalidRequest) as refused:
        max_tokens(request_type, {**body, **logprobs, "max_tokens": MOST + 1})
    assert refused.value.param == "max_tokens"
    assert refused.value.details == {"max_tokens": MOST}
    # Left open, it is what the bound allows.
    own = Model(sampling=SamplingDefaults(max_tokens=100_000))
    assert max_tokens(request_type, {**body, **logprobs}, own) == MOST
    assert max_tokens(request_type, body, own) == 100_000


def test_logprobs_bound_names_the_field_that_was_set() -> None:
    asked = {"logprobs": True, "top_logprobs": 20, "max_completion_tokens": 20_000}
    with pytest.raises(errors.InvalidRequest) as refused:
        max_tokens(ChatCompletionRequest, {**CHAT, **asked})
    assert refused.value.param == "max_completion_tokens"
