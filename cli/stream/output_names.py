"""Names output files, and looks before the work whether they can be written."""

import os
import re
from pathlib import Path

from cli.errors import Failure

_LONGEST = 40


def free_name(text: str, seed: int, suffix: str) -> Path:
    """Return a file name made from the prompt that is not taken yet."""
    words = re.sub(r"[^\w]+", "-", text.lower()).strip("-")[:_LONGEST].strip("-")
    stem = f"{words or 'untitled'}-{seed}"
    path, number = Path(f"{stem}.{suffix}"), 2
    while path.exists():
        path, number = Path(f"{stem}-{number}.{suffix}"), number + 1
    return path


def check_writable(output: Path | None) -> None:
    """Refuse a file that could not be written once it is made; None and ``-`` are no file."""
    if str(output) == "-":
        return
    folder = Path() if output is None else output.parent
    if not folder.is_dir():
        raise Failure(f"{output} cannot be written: there is no folder {folder}")
    if output is not None and output.is_dir():
        raise Failure(f"{output} cannot be written: it is a folder")
    known = output if output is not None and output.exists() else folder
    if not os.access(known, os.W_OK):
        raise Failure(f"{known} cannot be written (permission denied)")
