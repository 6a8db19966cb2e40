"""Pulls in forks of a process that has everything imported, so that many can be killed quickly.

    python -m tests.support.pull_forks STORE URL

For each line on stdin: a fork that pulls, its process id on stdout, and its exit status later.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model_store.hub.pull import HubOptions, PullRequest, pull
from model_store.store import ModelStore
from tests.support.hub import REPO


def main(root: Path, url: str) -> None:
    for _ in sys.stdin:
        if (child := os.fork()) == 0:
            _pull(root, url)
        _tell(child)
        _, status = os.waitpid(child, 0)
        _tell(os.waitstatus_to_exitcode(status))


def _tell(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def _pull(root: Path, url: str) -> None:
    try:
        pull(ModelStore(root), PullRequest(repo=REPO, hub=HubOptions(url)))
        os._exit(0)
    finally:
        os._exit(1)


class PullForks:
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def start(self) -> int:
        """Start a pull; return its process."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._number()

    def wait(self) -> int:
        """Return the exit status of the pull that was started last; a signal is negative."""
        return self._number()

    def _number(self) -> int:
        assert self._process.stdout
        return int(self._process.stdout.readline())


@contextmanager
def pull_forks(root: Path, url: str) -> Iterator[PullForks]:
    command = [sys.executable, "-m", "tests.support.pull_forks", str(root), url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
        yield PullForks(process)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
