"""Voices as clients see them."""

from datetime import UTC, datetime
from typing import Any

import pytest

from model_store.manifest import Manifest
from model_store.voices import voices_of


def told(*voices: str, **fields: Any) -> list[tuple[str | None, str | None]]:
    facts = {"model_type": "bark", "source": "huggingface", **fields}
    manifest = Manifest(
        name="m",
        kind="speech",
        engine="speech",
        voices=voices,
        files=(),
        created_at=datetime.now(UTC),
        **facts,
    )
    return [(each["language"], each["gender"]) for each in voices_of(manifest)]


@pytest.mark.parametrize(
    ("voice", "language", "gender"),
    [
        ("v2/en_speaker_6", "en", "male"),
        ("v2/en_speaker_9", "en", "female"),
        ("v2/pt_speaker_0", "pt", "male"),
        ("v2/en_speaker_10", "en", None),
        ("v2/xx_speaker_1", "xx", None),
        ("en_speaker_9", "en", None),
        ("announcer", None, None),
    ],
)
def test_language_and_gender_where_they_are_known(
    voice: str, language: str | None, gender: str | None
) -> None:
    assert told(voice) == [(language, gender)]


def test_voices_of_other_models_and_demos_are_unknown() -> None:
    assert told("v2/en_speaker_9", model_type="vits") == [(None, None)]
    assert told("v2/en_speaker_9", source="demo") == [("en", None)]
