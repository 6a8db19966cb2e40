"""Lists the files of a model's folder, of which none may be more than a plain file."""

import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from model_store.errors import BadFiles
from model_store.inspection.facts import objects
from model_store.names import MOST_FILES, check_files

_MOST_PATHS = 10 * MOST_FILES  #: hidden ones of tools count here, too


def model_files(folder: Path) -> list[str]:
    """Return the files of a folder by path, without hidden ones (of tools). Raises BadFiles."""
    found = []
    for seen, path in enumerate(folder.rglob("*")):
        if seen >= _MOST_PATHS:
            raise BadFiles(f"The folder holds more than {_MOST_PATHS} files.")
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts):
            continue
        if path.is_dir():
            if path.is_symlink():
                raise BadFiles("There is a link to a folder; only files may be links.")
        else:
            if path.is_symlink() and not path.exists():
                raise BadFiles(f"{str(inside)[:120]!a} is a link to nothing, or to itself.")
            found.append(str(inside))
    check_files(found)
    return sorted(found, key=lambda path: path.split("/"))


def open_files(folder: Path, paths: Iterable[str]) -> list[str]:
    """Return the paths, each of which is a plain file that can be opened without waiting.

    To open a pipe, a socket or a device would wait for ever, or do something. Raises BadFiles.
    """
    found = list(paths)
    for path in found:
        try:
            mode = (folder / path).stat().st_mode
        except (OSError, ValueError) as error:
            raise BadFiles(f"{path[:120]} is a link to nothing, or cannot be read.") from error
        if not stat.S_ISREG(mode):
            raise BadFiles(f"{path[:120]} is not a plain file.")
    return found


def needs_code(value: Any) -> bool:
    """Find ``auto_map`` in a config or in one inside it; in a vocabulary it is only a word."""
    return any(
        "auto_map" in part and not isinstance(part["auto_map"], int) for part in objects(value)
    )
