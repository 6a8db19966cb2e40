"""Shows images in terminals: by the protocol that a terminal knows, else in half blocks."""

import base64
import io
from collections.abc import Mapping

_CHUNK = 4096  #: what kitty takes at once
_HALF = "▀"
_COLUMNS = 60
_INLINE = ("iTerm.app", "WezTerm")


def protocol_of(environ: Mapping[str, str]) -> str | None:
    """Return ``kitty`` or ``iterm`` if the terminal says that it knows one of them."""
    program, term = environ.get("TERM_PROGRAM", ""), environ.get("TERM", "")
    if "KITTY_WINDOW_ID" in environ or "kitty" in term or "ghostty" in (term, program):
        return "kitty"
    return "iterm" if program in _INLINE else None


def shown(picture: bytes, protocol: str | None, columns: int) -> str:
    """Return what to write to the terminal, the line end included."""
    if protocol == "kitty":
        return kitty(_as_png(picture)) + "\n"
    if protocol == "iterm":
        return iterm(picture) + "\n"
    return half_blocks(picture, min(columns, _COLUMNS))


def kitty(png: bytes) -> str:
    """Encode for Kitty's graphics protocol: transmit and show, in chunks of base64."""
    text = base64.standard_b64encode(png).decode()
    chunks = [text[start : start + _CHUNK] for start in range(0, len(text), _CHUNK)] or [""]
    out = []
    for number, chunk in enumerate(chunks):
        more = int(number < len(chunks) - 1)
        control = f"a=T,f=100,m={more}" if number == 0 else f"m={more}"
        out.append(f"\x1b_G{control};{chunk}\x1b\\")
    return "".join(out)


def iterm(picture: bytes) -> str:
    """Encode for iTerm2's inline images, which take any format."""
    text = base64.standard_b64encode(picture).decode()
    return f"\x1b]1337;File=inline=1;size={len(picture)};preserveAspectRatio=1:{text}\x07"


def half_blocks(picture: bytes, columns: int) -> str:
    """Draw two pixels per character, in 24-bit colour."""
    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(picture)) as image:
        height = max(2, round(image.height * columns / image.width / 2) * 2)
        rows = np.asarray(image.convert("RGB").resize((columns, height))).tolist()
    lines = []
    for upper, lower in zip(rows[::2], rows[1::2], strict=True):
        cells = (_cell(*colours) for colours in zip(upper, lower, strict=True))
        lines.append("".join(cells) + "\x1b[0m\n")
    return "".join(lines)


def _cell(upper: list[int], lower: list[int]) -> str:
    above, below = (";".join(map(str, colour)) for colour in (upper, lower))
    return f"\x1b[38;2;{above};48;2;{below}m{_HALF}"


def _as_png(picture: bytes) -> bytes:
    if picture.startswith(b"\x89PNG"):
        return picture
    from PIL import Image

    out = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as image:
        image.save(out, "PNG")
    return out.getvalue()
