"""Names output files for which the user gave no name."""

import re
from pathlib import Path

_LONGEST = 40


def free_name(text: str, seed: int, suffix: str) -> Path:
    """Return a file name made from the prompt that is not taken yet."""
    words = re.sub(r"[^\w]+", "-", text.lower()).strip("-")[:_LONGEST].strip("-")
    stem = f"{words or 'untitled'}-{seed}"
    path, number = Path(f"{stem}.{suffix}"), 2
    while path.exists():
        path, number = Path(f"{stem}-{number}.{suffix}"), number + 1
    return path
