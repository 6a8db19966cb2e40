"""Tells which functions of the server open a session of the database, and which of them ran."""

import ast
import sys
from pathlib import Path
from typing import Any

import pytest

from bitinglip.db.database import Database

_ROOT = Path(__file__).parents[2]
_OPENS = ("write", "write_beside", "read", "in_snapshot")  #: the methods of ``Database``


def in_source() -> set[str]:
    """Return the functions that do, as ``bitinglip.tasks.store:TaskStore.add``."""
    found = set()
    for path in (_ROOT / "bitinglip").rglob("*.py"):
        text = path.read_text()
        if "db" not in text or (path.parent.name == "db" and path.name == "database.py"):
            continue
        module = ".".join(path.relative_to(_ROOT).with_suffix("").parts)
        found |= {f"{module}:{name}" for name in _openers(ast.parse(text), "")}
    return found


def _openers(node: ast.AST, within: str) -> set[str]:
    found = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found |= _openers(child, f"{within}.{child.name}".lstrip("."))
        else:
            if _is_opening(child):
                found.add(within)
            found |= _openers(child, within)
    return found


def _is_opening(node: ast.AST) -> bool:
    """Return whether a node is a call such as ``self._db.write()``."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    of = node.func.value
    name = of.attr if isinstance(of, ast.Attribute) else of.id if isinstance(of, ast.Name) else ""
    return node.func.attr in _OPENS and name.strip("_") in ("db", "database")


def record(monkeypatch: pytest.MonkeyPatch, ran: set[str]) -> None:
    """Add to a set the functions that open a session from now on."""

    def recorded(name: str) -> Any:
        plain = getattr(Database, name)

        def opened(self: Database, *args: Any) -> Any:
            caller = sys._getframe(1)
            function = caller.f_code.co_qualname.partition(".<locals>")[0]
            ran.add(f"{caller.f_globals['__name__']}:{function}")
            return plain(self, *args)

        return opened

    for name in _OPENS:
        monkeypatch.setattr(Database, name, recorded(name))
