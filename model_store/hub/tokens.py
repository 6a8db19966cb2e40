"""Finds the hub's token, which appears in no argument, log, message or manifest."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from model_store.errors import TokenRefused

_TOKEN = re.compile(r"[!-~]{1,4096}", re.ASCII)  #: visible characters: it becomes a header
_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def find_token(environ: Mapping[str, str], *, login: bool = True) -> str | None:
    """Return the token that the environment names; None if there is none.

    In this order: HF_TOKEN (and its older name), the file where the hub's own login puts it
    (HF_TOKEN_PATH, else HF_HOME/token), unless HF_HUB_DISABLE_IMPLICIT_TOKEN is set or not
    ``login``, as for an address that is not the hub's own. Raises TokenRefused for one that cannot
    be used.
    """
    for name in _VARIABLES:
        if text := environ.get(name, "").strip():
            return check_token(text, name)
    barred = environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in ("1", "ON", "YES", "TRUE")
    if barred or not login:
        return None
    own = _own_file(environ)
    return _of_login(own) if own.is_file() else None


def read_token(stream: IO[str]) -> str:
    """Return the token that is the first line of a stream. Raises TokenRefused."""
    return check_token(stream.readline(8192).strip(), "standard input")


def check_token(text: str, source: str) -> str:
    """Check that a text can be a token. Raises TokenRefused, whose message does not hold it."""
    if not _TOKEN.fullmatch(text):
        raise TokenRefused(f"What {source} gives is no token: one line of visible characters.")
    return text


def _of_login(path: Path) -> str | None:
    source = "the hub's own login"
    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise TokenRefused(f"The file of {source} cannot be read ({why}).") from None
    return check_token(text, source) if text else None


def _own_file(environ: Mapping[str, str]) -> Path:
    if path := environ.get("HF_TOKEN_PATH"):
        return Path(path).expanduser()
    cache = environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = environ.get("HF_HOME") or f"{cache}/huggingface"
    return Path(home).expanduser() / "token"
