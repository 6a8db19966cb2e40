"""OpenAI's names of voices stand for a model's own, in a fixed order. Pure."""

from collections.abc import Mapping, Sequence

#: in the order of OpenAI's documentation; newer ones come last, so that the others keep their place
OPENAI_VOICES = (
    *("alloy", "ash", "ballad", "coral", "echo", "fable", "nova", "onyx", "sage", "shimmer"),
    *("verse", "marin", "cedar"),
)
_ENGLISH = "en"


def own_voice(
    name: str, voices: Sequence[Mapping[str, str | None]], language: str | None
) -> str | None:
    """Return the model's voice that a name on OpenAI's surface stands for.

    voices: the model's own, as ``model_store.voices`` describes them. A voice of the model keeps
    its name, whatever it is; None if a model has but one, which has no name. Voices of the
    language that was asked for come first, else English ones; others are there only without any.
    """
    names = [str(each["id"]) for each in voices]
    if name in names or name.lower() not in OPENAI_VOICES:
        return name
    spoken = [each["id"] for each in voices if each["language"] == (language or _ENGLISH)[:2]]
    chosen = sorted(spoken or names, key=lambda each: not str(each).startswith("v2/"))
    number = OPENAI_VOICES.index(name.lower())
    return str(chosen[number % len(chosen)]) if chosen else None
