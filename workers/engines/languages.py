"""Knows a hundred languages by code and by English name, from the table of transformers."""

from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE


def language_code(name: str) -> str | None:
    """Return the code of a language given as a code, with a region or not, or as an English name;
    None for neither."""
    name = name.strip().lower().replace("_", "-")
    for each in (name, name.partition("-")[0].strip()):  # en-us, zh-hant-tw
        if each in LANGUAGES:
            return str(each)
        if each in TO_LANGUAGE_CODE:
            return str(TO_LANGUAGE_CODE[each])
    return None


def language_name(code: str | None) -> str | None:
    """Return the English name of a language, as OpenAI writes it: in small letters."""
    return None if code is None else LANGUAGES.get(code, code)
