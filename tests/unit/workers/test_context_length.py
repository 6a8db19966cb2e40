"""The words by which agents know that they must shorten their history."""

import pytest

from workers.context_length import context_length_error

#: what LangChain and litellm look for in the message of an error
WORDS = ["This model's maximum context length is 2048 tokens", "prompt is too long"]


@pytest.mark.parametrize("at_least", [False, True])
def test_context_length_error_of_a_long_prompt_has_the_words_that_agents_look_for(
    *, at_least: bool
) -> None:
    message, details = context_length_error(2048, 15010, max_tokens=None, at_least=at_least)
    assert all(words in message for words in WORDS)
    assert "15010" in message
    assert details == {"max_context": 2048, "prompt_tokens": 15010}


def test_context_length_error_tells_max_tokens_only_where_they_were_asked_for() -> None:
    message, details = context_length_error(2048, 10, max_tokens=3000)
    assert WORDS[0] in message
    assert WORDS[1] not in message  # it is not
    assert "3000" in message
    assert details["max_tokens"] == 3000
