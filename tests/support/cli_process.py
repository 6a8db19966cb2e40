"""Runs commands as a user does: each in a process of its own, some of them on a terminal."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support import command_forks, server

COMMAND = [sys.executable, "-m", "cli"]
ROOT = Path(__file__).parents[2]


def environ(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a command, without settings of the developer's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BITINGLIP_")}
    kept |= {"BITINGLIP_HOME": str(home), "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    if server.database_of is not None:
        kept["BITINGLIP_DATABASE__URL"] = server.database_of(home / "bitinglip.db")
    return kept | {"http_proxy": "http://127.0.0.1:1", "TERM": "xterm"} | more


def run(
    home: Path, *arguments: str, stdin: str | bytes = "", **more: str
) -> "subprocess.CompletedProcess[str]":
    """Run one command, without a terminal."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    env, folder = environ(home, **more), home.parent
    if not command_forks.can_run(more):
        done = subprocess.run(
            [*COMMAND, *arguments],
            input=data,
            check=False,
            capture_output=True,
            env=env,
            cwd=folder,
            timeout=60,
        )
    else:
        done = command_forks.run(arguments, stdin=data, env=env, cwd=folder, timeout=60)
    out, err = done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
    assert "Traceback" not in err, err
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


class NotShown(AssertionError):
    """A terminal did not show the expected text in time."""


class Terminal:
    """Runs a command on a pseudo terminal: type into it, wait for its output."""

    def __init__(self, process: "subprocess.Popen[bytes]", fd: int) -> None:
        self.process = process
        self._fd = fd
        self._seen = 0
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def interrupt(self) -> None:
        self.type("\x03")

    def interrupt_until(self, pattern: str) -> None:
        """Press Ctrl-C until it shows something: Python loses a signal that comes between
        readline's prompt and its first wait."""
        for _ in range(6):
            self.interrupt()
            with suppress(NotShown):
                return self.wait_for(pattern, seconds=10)
        raise AssertionError(f"{pattern!r} did not come:\n{self.shown}")

    def wait_for(self, pattern: str, seconds: float = 60) -> None:
        """Wait for some output after that of the last wait, and return it."""
        deadline = time.monotonic() + seconds
        while (match := re.search(pattern, self.shown[self._seen :])) is None:
            if time.monotonic() >= deadline:
                raise NotShown(f"{pattern!r} did not come:\n{self.shown}")
            assert self._read(), f"{pattern!r} did not come before the end:\n{self.shown}"
        self._seen += match.end()

    def wait_for_end(self, seconds: float = 60) -> int:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._read():
            pass
        return self.process.wait(seconds)

    def _read(self) -> bool:
        """False at the end."""
        if not select.select([self._fd], [], [], 0.2)[0]:
            return True
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # Linux: the other side is closed
            return False
        self.shown += data.decode("utf-8", "replace")
        return bool(data)


@contextmanager
def terminal(home: Path, *arguments: str, **more: str) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        # The shell opens the terminal, so the terminal's Ctrl-C reaches it.
        ["sh", "-c", ': <"$0"; exec "$@"', os.ttyname(theirs), *COMMAND, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environ(home, **more),
        cwd=home.parent,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
