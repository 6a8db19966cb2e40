"""Lists the commands from the program itself."""

from collections.abc import Iterator
from typing import Any

import typer

from cli.examples import EXAMPLES
from cli.main import app
from scripts.reference.page import table

HEAD = """\
# Command line

Exit codes: 0 done, 1 refused or failed with one line on stderr, 2 wrong usage. While a server
runs on the same home, commands go through it. `BITINGLIP_URL` and `BITINGLIP_API_KEY` name
another one. `bitinglip --install-completion` completes commands, models and scopes in bash, zsh
and fish.
"""


def page() -> str:
    root = typer.main.get_command(app)
    return HEAD + "".join(_commands(root, "bitinglip", None))


# typer brings a click of its own, whose classes have no public names.
def _commands(command: Any, name: str, parent: Any) -> Iterator[str]:
    context = command.context_class(command, info_name=name.split(" ")[-1], parent=parent)
    if hasattr(command, "list_commands"):
        for each in command.list_commands(context):
            found = command.get_command(context, each)
            if found is not None and not found.hidden:
                yield from _commands(found, f"{name} {each}", context)
        return
    yield f"\n## `{_usage(command, name, context)}`\n\n{_help(command)}\n"
    examples = "\n".join(EXAMPLES.get(name.removeprefix("bitinglip "), ()))
    yield f"\n```sh\n{examples}\n```\n"
    rows = [row for row in (_row(each, context) for each in command.params) if row is not None]
    if rows:
        yield "\n" + table(("option", "default", "meaning"), rows)


def _usage(command: Any, name: str, context: Any) -> str:
    pieces = [each for each in command.collect_usage_pieces(context) if each != "[OPTIONS]"]
    return " ".join([name, *pieces])


def _help(command: Any) -> str:
    return (command.help or "").replace("\b\n", "").strip()


def _row(param: Any, context: Any) -> tuple[str, str, str] | None:
    if param.param_type_name != "option" or param.hidden or "--help" in param.opts:
        return None
    names = ", ".join(f"`{each}`" for each in (*param.opts, *param.secondary_opts))
    default = param.get_default(context, call=False)
    shown = "" if default in (None, (), [], False) or callable(default) else f"`{default}`"
    return names, shown, param.help or ""
