"""Names for what was made and was given none."""

import re
from pathlib import Path

_LONGEST = 40


def free_name(text: str, seed: int, suffix: str) -> Path:
    """A name that says what is in it, of a file that is not there yet."""
    words = re.sub(r"[^\w]+", "-", text.lower()).strip("-")[:_LONGEST].strip("-")
    stem = f"{words or 'untitled'}-{seed}"
    path, number = Path(f"{stem}.{suffix}"), 2
    while path.exists():
        path, number = Path(f"{stem}-{number}.{suffix}"), number + 1
    return path
