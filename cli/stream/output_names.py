"""Names output files, checks before the work whether they can be written, and writes them."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import typer

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


def format_of(
    output: Path | None, chosen: str | None, formats: Mapping[str, str], default: str
) -> str:
    """Return the chosen format, else the one of the file's suffix, else the default."""
    if chosen is not None:
        return chosen
    if output is None or str(output) == "-":
        return default
    if output.suffix.lower() not in formats:
        raise typer.BadParameter(
            f"{output.name} should end in {', '.join(formats)}; or give --format",
            param_hint="--output",
        )
    return formats[output.suffix.lower()]


def write_file(path: Path, data: bytes) -> None:
    """Write a file. Raises Failure where the system refuses."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise Failure(f"{path} cannot be written ({error.strerror})") from error


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
