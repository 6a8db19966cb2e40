"""OpenAI's names of voices stand for a model's own."""

from typing import Any

import pytest

from bitinglip.wire.speech.voices import OPENAI_VOICES, own_voice


def voices(*names: str) -> list[dict[str, str | None]]:
    return [{"id": each, "language": each[3:5] if "/" in each else None} for each in names]


BARK = voices("en_speaker_0", *(f"v2/{each}_speaker_{n}" for each in ("de", "en") for n in (0, 1)))
BARK[0]["language"] = "en"
NUMBERED = voices("speaker_0", "speaker_1", "speaker_2")


@pytest.mark.parametrize(
    ("name", "known", "language", "expected"),
    [
        ("alloy", BARK, None, "v2/en_speaker_0"),
        ("Ash", BARK, None, "v2/en_speaker_1"),
        ("ballad", BARK, None, "en_speaker_0"),
        ("coral", BARK, None, "v2/en_speaker_0"),
        ("alloy", BARK, "de-AT", "v2/de_speaker_0"),
        ("alloy", BARK, "fr", "v2/de_speaker_0"),
        ("speaker_1", BARK, None, "speaker_1"),  # the worker knows what that is
        ("verse", NUMBERED, None, "speaker_1"),
        ("alloy", voices("alloy", "other"), None, "alloy"),
        ("ash", voices("alloy", "other"), None, "other"),
        ("alloy", [], None, None),
        ("nobody", [], None, "nobody"),
    ],
)
def test_voice_of_openai_is_one_of_the_model(
    name: str, known: list[dict[str, Any]], language: str | None, expected: str | None
) -> None:
    assert own_voice(name, known, language) == expected


def test_voices_of_openai_are_those_of_the_contract_in_its_order() -> None:
    named = "alloy ash ballad coral echo fable nova onyx sage shimmer verse"
    assert OPENAI_VOICES[:11] == tuple(named.split())
