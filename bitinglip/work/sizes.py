"""Estimates how many tokens texts have."""

CHARACTERS_PER_TOKEN = 4
MESSAGE_TOKENS = 16  #: that a chat template, or the tokenizer, may add to a text


def utf8_bytes(text: str) -> int:
    """Return the size of a text, which is never less than its number of tokens."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
