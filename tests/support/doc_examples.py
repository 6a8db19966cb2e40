"""Finds the examples in the documents, and what they ask of the command and of the server."""

import functools
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import typer

from cli.main import app

ROOT = Path(__file__).parents[2]
#: made from what programs print, which tests of their own compare
_MADE = {"machines.md", "guard.md"}
PAGES = [
    ROOT / "README.md",
    *sorted(each for each in (ROOT / "docs").glob("*.md") if each.name not in _MADE),
]
_BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^(?:sudo )?(?:[A-Z_]+=\S+ )?(?:\S*/)?bitinglip (.*)$")
_CURL = re.compile(r"^curl (.*)$", re.DOTALL)


class Example(NamedTuple):
    page: str
    line: int
    language: str
    text: str

    @property
    def id(self) -> str:
        return f"{self.page}:{self.line}"


def examples(*languages: str) -> list[Example]:
    """List the examples in these languages; all without any."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for each in _BLOCK.finditer(text):
            line = text.count("\n", 0, each.start()) + 1
            found.append(Example(page.name, line, each[1], each[2]))
    return [each for each in found if not languages or each.language in languages]


def commands(example: Example) -> Iterator[list[str]]:
    """Yield the arguments of each ``bitinglip`` in an example of the shell."""
    for line in example.text.replace("\\\n", " ").splitlines():
        if found := _COMMAND.match(line):
            yield shlex.split(found[1], comments=True)


@functools.cache
def whole_command() -> Any:
    """Return ``bitinglip`` with all its commands, whose making takes a while."""
    return typer.main.get_command(app)


def check_command(arguments: list[str]) -> None:
    """Raise what the command says of a command, option or argument that it does not have."""
    command: Any = whole_command()
    context = command.context_class(command, info_name="bitinglip")
    rest = list(arguments)
    while hasattr(command, "get_command"):
        found = command.get_command(context, rest[0])
        assert found is not None, f"there is no command {rest[0]}"
        command, rest = found, rest[1:]
        context = command.context_class(command, info_name=arguments[0], parent=context)
    _, left, _ = command.make_parser(context).parse_args(rest)
    assert not left, f"it takes no {left}"


class Call(NamedTuple):
    """Describes what a curl asks."""

    method: str
    path: str
    body: Any


def calls(example: Example) -> Iterator[Call]:
    """Yield what each curl in an example of the shell asks of the server."""
    for statement in re.split(r"\n(?=curl )", example.text.replace("\\\n", " ")):
        found = _CURL.match(statement.strip())
        if not found:
            continue
        words = shlex.split(found[1])
        url = next(each for each in words if each.startswith("http://"))
        body = json.loads(words[words.index("-d") + 1]) if "-d" in words else None
        path = re.sub(r"^http://[^/]+", "", url).partition("?")[0]
        yield Call("GET" if body is None else "POST", path, body)
