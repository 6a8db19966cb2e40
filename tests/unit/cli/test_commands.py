"""The shape of the command line: options that all have, wrong usage, quick imports."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.commands import keys
from cli.errors import NAMES_ELSEWHERE
from cli.examples import EXAMPLES
from cli.main import app
from tests.support.doc_examples import check_command, whole_command


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    group = group or whole_command()
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


ROOT = Path(__file__).parents[3]
COMMANDS = dict(commands())


def options(command: str) -> set[str]:
    return {flag for param in COMMANDS[command].params for flag in param.opts}


def test_commands_of_the_contract_are_there() -> None:
    models = ["pull", "import", "list", "show", "remove", "verify", "load", "unload", "fit"]
    models += ["downloads", "cancel", "update", "gc", "export", "pin", "unpin", "note"]
    expected = {f"models {name}" for name in models}
    expected |= {f"keys {name}" for name in ("create", "list", "show", "patch", "rotate", "revoke")}
    expected |= {f"workers {name}" for name in ("list", "show", "restart", "stop", "drain")}
    expected |= {f"generate {name}" for name in ("text", "image", "speech")}
    expected |= {"config check", "config show", "audit list", "audit verify"}
    expected |= {"serve", "chat", "transcribe", "status", "top", "usage", "doctor", "backup"}
    expected |= {"bench", "db backup", "db copy", "db migrate"}
    assert set(COMMANDS) == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_take_home_and_config_and_say_what_they_do(command: str) -> None:
    assert options(command) >= {"--home", "--config"}
    assert COMMANDS[command].help
    for param in COMMANDS[command].params:
        assert param.help, f"{command} {param.name} has no help"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_commands_breaks_no_line_and_names_arguments_alike(command: str) -> None:
    paragraphs = (COMMANDS[command].help or "").split("\n\n")
    assert not [each for each in paragraphs if "\n" in each.strip()], "shown as it is broken here"
    for param in COMMANDS[command].params:
        if param.param_type_name == "argument":
            assert (param.metavar or "").isupper() or "@" in param.metavar, param.name


#: they talk to a person, or fetch for minutes with bars
_WITHOUT_JSON = {"serve", "chat", "models pull", "models update", "models verify"}
_WITHOUT_JSON |= {"db backup", "db migrate", "db copy"}


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in _WITHOUT_JSON])
def test_commands_have_json(command: str) -> None:
    assert "--json" in options(command)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["models", "show"],
        ["models", "import", "folder"],
        ["keys", "create"],
        ["chat"],
        ["chat", "m", "--max-tokens", "0"],
        ["serve", "--port", "many"],
        ["status", "--wat"],
        ["keys", "list", "--json=maybe"],
    ],
)
def test_usage_that_is_wrong_ends_with_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stderr
    assert not result.stdout


def test_makefile_leaves_the_address_to_the_settings() -> None:
    def told(*given: str) -> str:
        command = ["make", "--dry-run", "serve", *given]
        environ = {**os.environ, "HOST": "build.example", "PORT": "1"}
        for outer in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):  # of the make that runs the tests
            environ.pop(outer, None)
        done = subprocess.run(
            command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()[-1].partition("bitinglip ")[2]

    assert told().split() == ["serve"]
    assert told("PORT=9000").split() == ["serve", "--port", "9000"]


def test_command_that_is_near_is_suggested() -> None:
    assert "models" in CliRunner().invoke(app, ["modles"]).stderr


@pytest.mark.parametrize("name", NAMES_ELSEWHERE)
def test_command_of_other_servers_is_told_by_its_name_here(name: str) -> None:
    told = CliRunner().invoke(app, [name, "llama"])
    assert told.exit_code == 2
    assert name not in COMMANDS
    assert NAMES_ELSEWHERE[name] in COMMANDS
    assert f"`bitinglip {NAMES_ELSEWHERE[name]}`" in told.stderr


def test_version_is_printed() -> None:
    from bitinglip import __version__

    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"bitinglip {__version__}\n")


@pytest.mark.parametrize("module", ["cli.main", "cli.__main__"])
def test_imports_of_the_commands_leave_the_product_out(module: str) -> None:
    """Help and mistakes are answered at once."""
    heavy = "torch transformers fastapi starlette sqlmodel pydantic httpx rich yaml bitinglip"
    code = (
        f"import sys, {module}; "
        "loaded = {name.partition('.')[0] for name in sys.modules}; "
        f"print(*sorted(loaded & set('{heavy} workers model_store'.split())))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("imported", "code"), [("cli.main", -signal.SIGINT), ("bitinglip.home", 130)]
)
def test_interrupt_while_a_command_is_imported_leaves_no_traceback(
    imported: str, code: int
) -> None:
    program = (
        "import os, sys\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {imported!r}: os.kill(os.getpid(), {signal.SIGINT.value})\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        "sys.argv = ['bitinglip', 'config', 'show']\n"
        "from cli.__main__ import main\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr


def test_keys_end_by_their_expiry_or_their_age() -> None:
    early, late = "2020-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00"
    for expires, rotate, state in (
        (None, None, "active"),
        (late, None, "active"),
        (None, late, "active"),
        (late, early, "expired"),
        (early, late, "expired"),
    ):
        key = {"revoked_at": None, "expires_at": expires, "rotate_by": rotate}
        assert keys._state(key) == state
    assert keys._end_of({"expires_at": late, "rotate_by": early}) == early


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_commands_ends_with_examples_that_are_right(command: str) -> None:
    assert COMMANDS[command].epilog
    parts = [part.split(" > ")[0] for line in EXAMPLES[command] for part in line.split(" | ")]
    ours = [shlex.split(part) for part in parts if "bitinglip " in part]
    assert len(ours) == len(EXAMPLES[command])
    for arguments in ours:
        own = arguments[arguments.index("bitinglip") + 1 :]
        assert " ".join(own).startswith(command)
        check_command(own)
