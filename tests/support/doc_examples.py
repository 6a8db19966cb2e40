"""Finds the examples in the documents, and what they ask of the command and of the server."""

import itertools
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import typer

from cli.main import app

ROOT = Path(__file__).parents[2]
#: made from what programs print, which tests of their own compare
_MADE = {"machines.md", "guard.md"}
PAGES = [
    ROOT / "README.md",
    *sorted(each for each in (ROOT / "docs").rglob("*.md") if each.name not in _MADE),
]
_PROMTOOL = r"(cd deploy/prometheus|promtool .*)$"
#: statements of the shell that no machine without more can run, and why; the rest is run
NOT_RUN = {
    r"make serve": "installs into the repository, then starts what other examples start",
    r"make test": "runs this test",
    r"git clone |cd bitinglip": "fetches the repository",
    r"nvidia-smi": "needs a card",
    r"python3 -m venv bitinglip|bitinglip/bin/pip |source bitinglip": "test_wheel.py installs",
    r"pip install 'bitinglip\[": "installs",
    r"sudo (useradd|python3|cp|systemctl|cat|/opt/bitinglip)": "changes the machine's services",
    r"sudo nvidia-ctk ": "needs a card and Docker",
    r"sudo bitinglip doctor --as-service": "needs systemd",
    r"docker ": "needs Docker",
    r"ray start |bitinglip serve --set workers.launcher=ray": "needs more machines; test_ray.py",
    r"mkdir -p ~/bitinglip-secrets|\(umask 077; head |scp ": "needs more machines",
    r"sudo -u postgres ": "needs PostgreSQL; postgres/test_server.py uses one",
    _PROMTOOL: "needs promtool",
    r"(bitinglip serve --home|BITINGLIP_API_KEY=.* keys list --home) ": (
        "needs PostgreSQL and settings; postgres/test_gateways.py does it"
    ),
    r"bitinglip db copy postgresql": "needs PostgreSQL; postgres/test_server.py does it",
    r"export (OPENAI|ANTHROPIC)_|aider |claude$": "needs a program of others; clients.md has when",
}
if shutil.which("promtool"):
    del NOT_RUN[_PROMTOOL]
_BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^(?:.* \| )?(?:sudo )?(?:[A-Z_]+=\S+ )?(?:\S*/)?bitinglip (.*)$")
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


def statements(example: Example) -> list[str]:
    """List what an example of the shell runs, one after the other."""
    found, begun = [], ""
    for line in example.text.splitlines():
        begun += line
        try:
            shlex.split(begun, comments=True)
        except ValueError:  # a quotation goes on
            begun += "\n"
            continue
        if begun.endswith("\\"):
            begun = begun[:-1]
        elif begun.strip():
            found.append(begun.strip())
            begun = ""
    assert not begun, example.id
    return found


def reason_not_to_run(statement: str) -> str | None:
    return next((why for what, why in NOT_RUN.items() if re.match(what, statement)), None)


def commands(example: Example) -> Iterator[list[str]]:
    """Yield the arguments of each ``bitinglip`` in an example of the shell."""
    for line in statements(example):
        if found := _COMMAND.match(line):
            words = shlex.shlex(found[1], posix=True, punctuation_chars="|>")
            words.whitespace_split = True
            yield list(itertools.takewhile(lambda word: word not in {"|", ">"}, words))


@cache
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
    for statement in statements(example):
        found = _CURL.match(statement)
        if not found:
            continue
        words = shlex.split(found[1])
        url = next(each for each in words if each.startswith("http://"))
        body = json.loads(words[words.index("-d") + 1]) if "-d" in words else None
        path = re.sub(r"^http://[^/]+", "", url).partition("?")[0]
        yield Call("GET" if body is None else "POST", path, body)
