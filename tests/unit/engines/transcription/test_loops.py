"""A decoder that says one phrase again and again is stopped before the window's last token."""

import pytest

from workers.engines.transcription.decoding import LOOP_TOKENS, is_loop

SPEECH = [(31 * place + place * place) % 997 for place in range(200)]


@pytest.mark.parametrize("period", [1, 2, 7, 12, 24])
def test_loop_is_one_phrase_for_many_tokens(period: int) -> None:
    phrase = list(range(100, 100 + period))
    assert is_loop(SPEECH + phrase * 150)
    assert is_loop((phrase * 150)[: max(LOOP_TOKENS, 5 * period)])


@pytest.mark.parametrize(
    "tokens",
    [
        [],
        SPEECH,
        [7] * (LOOP_TOKENS - 1),  # a speaker may say it often
        SPEECH + [5, 6, 7] * 10,
        [5, 6, 7] * 60 + [8],  # it is over
        list(range(40)) * 5,  # a verse
    ],
)
def test_loop_is_no_speech_that_repeats_a_little(tokens: list[int]) -> None:
    assert not is_loop(tokens)
