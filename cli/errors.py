"""Ends a command that fails with one clear line on stderr and exit code 1, or 2 for wrong usage."""

import errno
import sys
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from collections.abc import Sequence

# The product's errors that are meant for people. They are looked up in modules that are loaded
# already: an error whose module is not loaded cannot have been raised.
_MEANT_FOR_PEOPLE = (
    ("bitinglip.settings_loader", "SettingsError"),
    ("bitinglip.home", "HomeError"),
    ("bitinglip.errors", "BitingLipError"),
    ("bitinglip.db.files", "DatabaseError"),
    ("bitinglip.server", "StartRefused"),
    ("model_store.errors", "StoreError"),
)

#: commands as other servers' users type them, and where they are here
NAMES_ELSEWHERE = {
    "run": "chat",
    "pull": "models pull",
    "list": "models list",
    "ls": "models list",
    "show": "models show",
    "rm": "models remove",
    "load": "models load",
    "stop": "models unload",
    "ps": "status",
}


class Failure(Exception):
    """A command was refused or failed; the message is one line and says what to do.

    ``code`` is the API's, where it was the server that refused.
    """

    def __init__(self, message: str, *, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class Commands(TyperGroup):
    """Runs the commands; the one place where errors become lines and an exit code."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Say where a command is that others have by another name. Raises UsageError."""
        if args and args[0] in NAMES_ELSEWHERE:
            ctx.fail(
                f"No such command {args[0]!r}; here it is `bitinglip {NAMES_ELSEWHERE[args[0]]}`."
            )
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:  # what has no line of its own is raised again
            lines = error_lines(error)
            if not lines:
                raise
            print_errors(lines)
            raise typer.Exit(2 if _is_usage(error) else 1) from None


def _is_usage(error: Exception) -> bool:
    """Return whether all that is wrong was said by options, as ``--set`` and ``--port``."""
    problems: Sequence[str] = getattr(error, "problems", ())
    return bool(problems) and all(problem.startswith("--") for problem in problems)


def print_errors(lines: "Sequence[str]") -> None:
    from cli.show.output import clean

    for line in lines:
        typer.secho("Error: ", fg="red", bold=True, nl=False, err=True)
        typer.echo(" ".join(clean(line).split("\n")), err=True)


def error_lines(error: Exception) -> list[str]:
    """Return the lines to print; none for a bug, which keeps its traceback."""
    if isinstance(error, Failure):
        return [str(error)]
    if isinstance(error, OSError) and error.errno != errno.EPIPE:
        reason = error.strerror or str(error)
        return [f"{error.filename}: {reason}" if error.filename else reason]
    foreseen = tuple(
        getattr(sys.modules[module], name)
        for module, name in _MEANT_FOR_PEOPLE
        if module in sys.modules
    )
    if not isinstance(error, foreseen):
        return []
    return list(getattr(error, "problems", ())) or [getattr(error, "message", str(error))]
