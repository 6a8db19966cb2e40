"""Recognise BitingLip keys and clear text of them.

It lives down here because the logs may not import access: the key check and secret scanners use
this same expression.
"""

import re

#: one whole key: public id, secret with checksum
KEY_SHAPE = r"blk_live_([0-9A-Za-z]{12})_([0-9A-Za-z]{43})([0-9A-Za-z]{6})"

# Wider than a key on purpose: a cut or mistyped one still holds most of its secret.
_SECRET = re.compile(r"(blk_live_[0-9A-Za-z]{1,12})_[0-9A-Za-z_]+", re.ASCII)


def mask(text: str) -> str:
    """The text with the secret of each key starred; the public id stays, to know which it was."""
    if "blk_live_" not in text:
        return text
    return _SECRET.sub(r"\1_***", text)
