"""Runs commands inside the process of the test, which costs no start of Python."""

from pathlib import Path
from typing import NamedTuple

from typer.testing import CliRunner

from cli.context import UNTIL_THE_END
from cli.main import app
from tests.support import server


class Ran(NamedTuple):
    """Holds the output of a command, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        """Return the last line of what it has said about its work."""
        return self.err.splitlines()[-1]


def command(home: Path, *words: str, stdin: str = "", **environ: str) -> Ran:
    """Run a command on a home. Raises what the command raises, unless it is meant for people."""
    env = {"BITINGLIP_HOME": str(home), "BITINGLIP_URL": "", "HF_TOKEN": "", **environ}
    if server.database_of is not None:
        env["BITINGLIP_DATABASE__URL"] = server.database_of(home / "bitinglip.db")
    with UNTIL_THE_END:
        done = CliRunner().invoke(app, words, input=stdin, env=env)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Ran(done.exit_code, done.stdout, done.stderr)
