"""Checks names of models and of their files: bounded, and never a way out of a folder."""

import re
import unicodedata
from collections.abc import Collection
from pathlib import PurePosixPath

from model_store.errors import BadFiles, BadName

_PART = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}"
_NAME = re.compile(rf"{_PART}(/{_PART})?", re.ASCII)
#: of a repository's page; what follows the repository is left out
_ADDRESS = re.compile(
    r"(?:https?://[^/]+|(?!https?:)[a-z]+:/|(?:www\.)?(?:huggingface|hf)\.co)/"
    r"(?:models/)?([^/:@?#]+(?:/[^/:@?#]+)?)"
)
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-/]{0,127}", re.ASCII)
_LONGEST_PART = 255
_LONGEST_PATH = 1024
MOST_FILES = 10_000


def check_name(name: str) -> str:
    """Check a model's name: one part, or two with a slash. Raises BadName."""
    if not _NAME.fullmatch(name) or ".." in name or "--" in name:
        raise BadName(
            "A model's name is made of letters, digits, '.', '_' and single '-', begins with a "
            "letter or digit, and may hold one '/'."
        )
    return name


def check_new_name(name: str) -> str:
    """Check that no route of the API hides a model of this name. Raises BadName."""
    first, _, second = name.partition("/")
    if first == "downloads" or second == "fit":
        raise BadName(
            f"A model cannot be named '{name}', which is a route of the API; choose another name "
            "(--name of the commands, 'name' in the API)."
        )
    return name


def check_repo(repo: str) -> str:
    """Check a repository's name as a hub has it. Raises BadName, which says what to write."""
    match = _ADDRESS.match(repo)
    if match or "://" in repo:
        raise BadName(f"'{repo}' is an address{_write(match[1] if match else '')}.")
    name, colon, tag = repo.partition(":")
    if colon:
        raise BadName(
            f"'{repo}' names a variant ('{tag}') as GGUF files have, which are not read here"
            f"{_write(name)}."
        )
    return check_name(repo)


def _write(name: str) -> str:
    return f"; write {name if _NAME.fullmatch(name) else 'owner/name'}"


def check_revision(revision: str) -> str:
    """Check a branch, tag, commit or refs/pr/N. Raises BadName."""
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise BadName("A revision is a branch, a tag, a commit or refs/pr/N.")
    return revision


def folder_name(name: str) -> str:
    return name.replace("/", "--")


def model_name(folder: str) -> str:
    """Return the model whose folder has this name."""
    owner, _, name = folder.rpartition("--")  # the last: an owner's name may end with a dash
    return f"{owner}/{name}" if owner else name


def pull_folder(repo: str) -> str:
    """Return the name of the folder of a repository's unfinished download."""
    return f"pull-{folder_name(check_name(repo)).lower()}"


def check_file(path: str) -> str:
    """Check a file's path inside a model's folder. Raises BadFiles."""
    pure = PurePosixPath(path)
    good = (
        pure.parts
        and not pure.is_absolute()
        and ".." not in pure.parts
        and str(pure) == path
        and not any(char in path for char in "\\:")
        and path.isprintable()  # so no control characters, and no surrogates, which do not encode
        and len(path.encode()) <= _LONGEST_PATH
        and all(len(part.encode()) <= _LONGEST_PART for part in pure.parts)
    )
    if not good:
        raise BadFiles(f"The model has a file whose name cannot be taken: {path[:40]!a}.")
    return path


def check_files(paths: Collection[str]) -> None:
    """Check every path, that no two differ only in case or form, and that no file is a folder."""
    if len(paths) > MOST_FILES:
        raise BadFiles(f"The model has more than {MOST_FILES} files.")
    for path in paths:
        check_file(path)
    folded = {_folded(path) for path in paths}
    if len(folded) != len(paths):
        raise BadFiles("The model has two files whose names differ only in case.")
    if any(str(above) in folded for path in folded for above in PurePosixPath(path).parents):
        raise BadFiles("The model has a file and a folder of the same name.")


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()
