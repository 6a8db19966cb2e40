"""Describes files by their contents, and checks what a gateway calls them."""

import hashlib
from collections.abc import Iterable
from pathlib import PurePosixPath

from workers.framing import BadFrame
from workers.nodes.messages import Tree, TreeFile

_MOST_NAME = 255  #: bytes of one name in a path


def key_of(files: Iterable[TreeFile]) -> str:
    """Return what a set of files is called, by their paths and contents."""
    digest = hashlib.sha256()
    for each in sorted(files, key=lambda file: file.path):
        digest.update(f"{each.path}\0{each.sha256}\0{each.size}\n".encode())
    return digest.hexdigest()[:32]


def check_tree(tree: Tree) -> None:
    """Raise BadFrame for paths that could lead out of the folder of their tree, or that cannot all
    be there."""
    seen: set[str] = set()
    folders: set[str] = set()
    sizes: dict[str, int] = {}
    for each in tree.files:
        names = each.path.split("/")
        if not all(_is_plain(name) for name in names) or each.path in seen:
            raise BadFrame("a file of a model has a path that may not be used")
        seen.add(each.path)
        folders.update(str(parent) for parent in PurePosixPath(each.path).parents)
        if sizes.setdefault(each.sha256, each.size) != each.size:
            raise BadFrame("files of one content have two sizes")
    if seen & folders or (tree.is_file and len(tree.files) != 1):
        raise BadFrame("a file of a model has a path that may not be used")


def _is_plain(name: str) -> bool:
    if name in ("", ".", "..") or "\0" in name:
        return False
    try:
        return len(name.encode()) <= _MOST_NAME
    except UnicodeEncodeError:
        return False
