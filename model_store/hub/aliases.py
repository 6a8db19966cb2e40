"""Knows short names of repositories: a list in this package, and one of the operator's."""

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from model_store.errors import BadName
from model_store.names import check_name, check_repo

FILE = "aliases.yaml"  #: also of the operator's list, in the home
_MOST_BYTES = 1_000_000


def repo_of(name: str, home: Path | None = None) -> str | None:
    """Return the repository that a short name stands for, or None if it stands for none.

    Only the whole name counts. The list in the home comes first. Raises BadName if it is damaged.
    """
    return aliases(home).get(name)


def aliases(home: Path | None = None) -> dict[str, str]:
    """Return all short names and their repositories, by name. Raises BadName."""
    own = _own(home / FILE) if home is not None else {}
    merged = {**_ours(), **own}
    return {name: repo for name, repo in sorted(merged.items()) if repo is not None}


def _own(path: Path) -> dict[str, str | None]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise BadName(f"{FILE} in the home is too large for a list of names.")
        return _checked(yaml.safe_load(path.read_text()))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BadName(f"{FILE} in the home cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise BadName(f"{FILE} in the home is not valid YAML.") from error


@cache
def _ours() -> dict[str, str | None]:
    text = resources.files(__package__).joinpath(FILE).read_text()
    return _checked(yaml.safe_load(text))


def _checked(value: Any) -> dict[str, str | None]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadName(f"{FILE} does not hold lines of the form 'name: owner/repository'.")
    for name, repo in value.items():
        if not isinstance(name, str) or "/" in check_name(name):
            raise BadName(f"{FILE} has a name that cannot be one: {str(name)[:80]!a}.")
        if repo is not None and not isinstance(repo, str):
            raise BadName(f"{FILE} names no repository for '{name}'.")
        if repo is not None:
            check_repo(repo)
    return value
