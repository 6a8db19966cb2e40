"""Writes docs/guard.md: what the guard does, and the table of what it recognises."""

from pathlib import Path

from bitinglip.guard.recognisers import RECOGNISERS, Recogniser
from bitinglip.guard.scanner import label
from bitinglip.settings.guard import Guard

PAGE = Path(__file__).parents[1] / "docs" / "guard.md"
_HEAD = """\
# The guard

The guard looks at prompts (all messages of a chat, prompts of images and transcriptions, texts to
say) before a job is admitted, and at generated text and transcripts before clients can read them:
bodies, streams, WebSockets and stored tasks show the same. It does not look into pictures. It is
off unless the settings say otherwise, and costs nothing then.

| mode | prompt | result |
|---|---|---|
| `report` | counts what is found | counts what is found |
| `redact` | the model reads `[EMAIL]` in place of an address | the client reads it |
| `block` | 400 `PII_DETECTED`, with `classes` and `count` | the answer ends with that error |

`guard.input` and `guard.output` set the modes, `limits.tiers.<tier>.guard` those of a tier; the
`guard` of a key makes both stricter for it and for the keys that it makes. What is found is told by
class and number in `bitinglip_guard_detections_total{class,direction,action}`, and in no log. Usage
counts the tokens that were made, whatever is shown of them. A redacted answer is never cached.

A stream is held back only while its end could become a match, by at most 63 characters: a word
until the next one begins, a number until it ends. It is redacted exactly as the whole text is,
however it is cut. Full-width digits, odd dashes and spaces, and invisible characters between two
others hide nothing, nor do the escapes of JSON in the arguments of a call. What is spelt out,
encoded or said in other words is not found.

Log-probabilities of what is redacted, and beside it, are left out; so are the words and tokens of a
segment of a transcript in which something is.

## Listed words

`guard.words` and `guard.words_file` (one entry a line, `#` for comments, read again when it
changes) hold words and phrases of up to 62 characters; `words_input` and `words_output` say whether
they are reported or blocked (400 `CONTENT_FILTERED`). They are found in any case, with or without
accents, in letters that look alike, with anything but letters and digits between words. Whole words
count: `*` at an end of an entry stands for the rest of a word.

`guard.flagged_images: refuse` refuses images that the model's own safety checker has flagged.

## Failures of the guard

With `guard.on_error: close` a text that the guard fails on is refused (503), with `open` it passes
unchecked. `/health` turns `degraded` and `bitinglip_guard_failures_total` counts either.

## Recognised data

Classes of `guard.classes` without `ip_address` and `mac_address` by default. The rows are those of
`bitinglip/guard/recognisers.py`; this page is made by `python -m scripts.guard_text`.

| what | class | shown as | characters looked at |
|---|---|---|---|
"""


def guard_text() -> str:
    return _HEAD + "".join(_row(each) for each in RECOGNISERS)


def _row(recogniser: Recogniser) -> str:
    by_default = "" if recogniser.kind in Guard().classes else " (off)"
    longest = f"{recogniser.longest}{'' if recogniser.tail is None else ', then to its end'}"
    shown = label(recogniser.kind)
    return f"| {recogniser.name} | `{recogniser.kind}`{by_default} | `{shown}` | {longest} |\n"


if __name__ == "__main__":
    PAGE.write_text(guard_text())
