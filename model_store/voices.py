"""Describe voices beside their names.

Bark's second presets were published with a table of who speaks; the first ones were not.
"""

import re
from collections.abc import Iterable

from model_store.manifest import Manifest

_NAME = re.compile(r"(?:v2/)?(?P<language>[a-z]{2})_speaker_(?P<number>\d+)")
#: by language, the numbers of v2 presets in which a woman speaks; in the others of 0 to 9 a man
_WOMEN = {
    "de": {3, 8},
    "en": {9},
    "es": {8, 9},
    "fr": {1, 2, 5},
    "hi": {0, 1, 3, 4, 9},
    "it": {2, 7, 9},
    "ja": {0, 1, 3, 4, 5, 7, 8, 9},
    "ko": {0},
    "pl": {4, 6, 9},
    "pt": set(),
    "ru": {5, 6, 9},
    "tr": {4, 5},
    "zh": {4, 6, 7, 9},
}


def voices_of(manifest: Manifest, more: Iterable[str] = ()) -> list[dict[str, str | None]]:
    """List voices by id, with language and gender where they are known: of Bark's presets.
    ``more``: those that the settings add to the model's own."""
    names = dict.fromkeys([*manifest.voices, *sorted(more)])
    return [_info(name, manifest) for name in names]


def _info(name: str, manifest: Manifest) -> dict[str, str | None]:
    found = _NAME.fullmatch(name) if manifest.model_type == "bark" else None
    if found is None:
        return {"id": name, "language": None, "gender": None}
    gender = None if manifest.source == "demo" else _gender(found)  # those only babble
    return {"id": name, "language": found["language"], "gender": gender}


def _gender(found: re.Match[str]) -> str | None:
    women = _WOMEN.get(found["language"])
    if women is None or not found[0].startswith("v2/") or len(found["number"]) > 1:
        return None
    return "female" if int(found["number"]) in women else "male"
