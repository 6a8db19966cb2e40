"""Sets the languages of models that translate, by their codes (NLLB, mBART, M2M100)."""

from typing import Any

from workers.engines.text.families import Family
from workers.engines.torch_env import load_failed
from workers.protocol import TextOptions


def set_source(tokenizer: Any, family: Family, options: TextOptions) -> None:
    """Have a tokenizer mark prompts with the language that the settings name.

    Raises Refused for one that its model does not know, or that it marks no prompts with.
    """
    for field in ("source_language", "target_language"):
        if getattr(options, field) is not None and family != "seq2seq":
            raise load_failed(f"text.{field} is set, but this model has no encoder for prompts.")
    code = options.source_language
    if code is None:
        return
    _id_of(tokenizer, code, "source_language")
    if not hasattr(type(tokenizer), "src_lang"):
        raise load_failed("text.source_language is set, but the tokenizer marks no languages.")
    tokenizer.src_lang = code


def starts_in(tokenizer: Any, starts: tuple[int, ...], options: TextOptions) -> tuple[int, ...]:
    """Return what a decoder begins with, so that it answers in the language of the settings.

    ``starts``: what it begins with by its files. Where that is a language itself, this one takes
    its place; else it comes second, as the token that ``generate()`` is made to say first. Raises
    Refused for a language that the model does not know.
    """
    if options.target_language is None:
        return starts
    if codes := getattr(tokenizer, "supported_language_codes", None):
        raise load_failed(
            "text.target_language is set, but this model is told it in the prompt, which begins "
            f"with {codes[0][:40]!a} or another language."
        )
    wanted = _id_of(tokenizer, options.target_language, "target_language")
    plain = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return (starts[0], wanted) if starts[0] in plain else (wanted,)


def _id_of(tokenizer: Any, code: str, field: str) -> int:
    """Return the token of a language. Raises Refused if the tokenizer has none."""
    # M2M100's tokens of languages have other names than its codes.
    name = getattr(tokenizer, "lang_code_to_token", {}).get(code, code)
    found = tokenizer.convert_tokens_to_ids(name)
    if not isinstance(found, int) or found == tokenizer.unk_token_id:
        raise load_failed(f"text.{field} is {code[:40]!a}, for which the model has no token.")
    return found
