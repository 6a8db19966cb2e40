"""Declares the settings of the guard: personal data, secrets and listed words in both
directions."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from bitinglip.settings.sections import Section

PersonalData = Literal[
    "email", "phone", "card", "iban", "national_id", "ip_address", "mac_address", "secret"
]
#: from the least strict to the strictest
MODES = ("off", "report", "redact", "block")


def _unquoted(value: object) -> object:
    """Take a plain ``off``, which YAML reads as false."""
    return "off" if value is False else value


Mode = Annotated[Literal["off", "report", "redact", "block"], BeforeValidator(_unquoted)]
ListMode = Annotated[Literal["off", "report", "block"], BeforeValidator(_unquoted)]


_WORDS = "off, report or block (CONTENT_FILTERED)"


class TierGuard(Section):
    """Says what the guard does for the keys of a tier, in place of the general modes."""

    input: Mode | None = Field(
        None, description="personal data in the prompts of these keys; null uses guard.input"
    )
    output: Mode | None = Field(
        None, description="personal data in the results of these keys; null uses guard.output"
    )
    words_input: ListMode | None = Field(
        None, description="listed words in the prompts of these keys; null uses guard.words_input"
    )
    words_output: ListMode | None = Field(
        None, description="listed words in the results of these keys; null uses guard.words_output"
    )


class Guard(Section):
    """Says what the guard looks for, and what it does about it."""

    input: Mode = Field(
        "off",
        description="personal data in prompts: off, report (count it), redact (put [EMAIL] and so "
        "on in its place) or block (refuse the request with PII_DETECTED)",
    )
    output: Mode = Field(
        "off",
        description="personal data in generated text and transcripts, streams included: off, "
        "report, redact or block (end the answer with PII_DETECTED)",
    )
    classes: list[PersonalData] = Field(
        ["email", "phone", "card", "iban", "national_id", "secret"],
        description="what counts as personal data: email, phone, card, iban, national_id, "
        "ip_address, mac_address and secret (keys, tokens, passwords)",
    )
    words: list[str] = Field(
        [],
        description="words and phrases that are not allowed, in any case and spelling; * at an end "
        "stands for the rest of a word",
    )
    words_file: str | None = Field(
        None,
        description="file with further words and phrases, one a line; it is read again when it "
        "changes",
    )
    words_input: ListMode = Field("off", description=f"listed words in prompts: {_WORDS}")
    words_output: ListMode = Field(
        "off", description=f"listed words in generated text and transcripts: {_WORDS}"
    )
    flagged_images: Literal["show", "refuse"] = Field(
        "show",
        description="images that a model's own safety checker has flagged: show them in black, or "
        "refuse the request with CONTENT_FILTERED; then no previews are shown",
    )
    on_error: Literal["close", "open"] = Field(
        "close",
        description="what happens to a text when the guard itself fails: close refuses it, open "
        "lets it pass unchecked; /health and the metrics show the failure",
    )
