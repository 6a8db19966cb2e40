"""Recognise keys and tokens, and the hub's, and clear text of them and of control characters.

It lives down here because the logs may not import access: the key check and secret scanners use
this same expression.
"""

import re

#: one whole key: public id, secret with checksum
KEY_SHAPE = r"blk_live_([0-9A-Za-z]{12})_([0-9A-Za-z]{43})([0-9A-Za-z]{6})"

# Wider than a key on purpose: a cut or mistyped one still holds most of its secret.
_SECRET = re.compile(r"(blk_live_[0-9A-Za-z]{1,12})_[0-9A-Za-z_]+", re.ASCII)
#: a token's header and claims are public; its signature is what makes it one
TOKEN_SHAPE = r"(?<![0-9A-Za-z_-])(eyJ[0-9A-Za-z_-]{10,}\.[0-9A-Za-z_-]+)\.[0-9A-Za-z_-]+"
_TOKEN = re.compile(TOKEN_SHAPE, re.ASCII)
_HUB_TOKEN = re.compile(r"(?<![0-9A-Za-z])hf_[0-9A-Za-z]{20,}", re.ASCII)


def mask(text: str) -> str:
    """Return the text with the secret of each key starred; the public id stays, to know which it
    was."""
    if "blk_live_" in text:
        text = _SECRET.sub(r"\1_***", text)
    if "eyJ" in text:
        text = _TOKEN.sub(r"\1.***", text)
    if "hf_" in text:
        text = _HUB_TOKEN.sub("hf_***", text)
    return text


# C0, DEL, C1, line separators, and the marks that turn the direction of text.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escape(text: str) -> str:
    """Return the text with each character that a terminal would obey as ``\\uXXXX``."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
