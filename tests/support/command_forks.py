"""Runs commands in processes forked from one that has imported the product already.

A command imports for a second and works for a tenth of it, and tests run hundreds of them. Each
still is a process of its own, with the environment, folder, input and outputs that it is given,
and ends as one does that ``python -m cli`` starts.
"""

import atexit
import contextlib
import functools
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO, NoReturn

ROOT = Path(__file__).parents[2]
#: what most commands import, and what is imported by name only: without torch
PACKAGES = ("cli", "model_store")
MODULES = (
    "aiosqlite", "alembic.command", "bitinglip.access.keys", "bitinglip.app", "httpx",
    "bitinglip.db.migrations.upgrade", "bitinglip.server", "rich.table", "rich.progress",
    "sqlalchemy.dialects.sqlite.aiosqlite", "workers.devices",
)  # fmt: skip


class Forked:
    """A command that runs: what tests use of ``subprocess.Popen``."""

    def __init__(self, pid: int, sock: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._sock = sock  #: tells the exit code, once

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code. Raises TimeoutExpired if it still runs after ``timeout`` s."""
        if self.returncode is None:
            ready, _, _ = select.select([self._sock], [], [], timeout)
            if not ready:
                raise subprocess.TimeoutExpired([], timeout or 0)
            self.returncode = int(self._sock.recv(20))
            self._sock.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    arguments: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    stdin: BinaryIO,
    stdout: BinaryIO,
    stderr: BinaryIO,
) -> Forked:
    """Start ``python -m cli`` as ``subprocess.Popen`` does."""
    message = json.dumps({"arguments": list(arguments), "env": dict(env), "cwd": str(cwd)}).encode()
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(_address())
    files = [each.fileno() for each in (stdin, stdout, stderr)]
    socket.send_fds(sock, [b"%10d" % len(message)], files)
    sock.sendall(message)
    return Forked(int(sock.recv(10)), sock)


def run(
    arguments: Sequence[str], *, stdin: bytes, env: Mapping[str, str], cwd: Path, timeout: float
) -> "subprocess.CompletedProcess[bytes]":
    """Run ``python -m cli`` as ``subprocess.run`` does, with files in place of pipes."""
    with contextlib.ExitStack() as stack:
        given, out, err = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        given.write(stdin)
        given.seek(0)
        process = start(arguments, env=env, cwd=cwd, stdin=given, stdout=out, stderr=err)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess([*arguments], code, _whole(out), _whole(err))


def can_run(more: Mapping[str, str]) -> bool:
    """Return whether a command needs no new interpreter with these variables of its own.

    An interpreter reads some at its start, and the measurement of coverage begins with one.
    """
    ours = all(name.startswith("BITINGLIP_") for name in more)
    return ours and "COVERAGE_PROCESS_CONFIG" not in os.environ


def _whole(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


@functools.cache
def _address() -> str:
    """Start the process that forks; it ends with this one."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
    )
    assert process.stdout is not None
    with process.stdout as told:
        address = told.readline().decode().strip()
    atexit.register(_end, process)
    return "\0" + address


def _end(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait()


# ---- the process that forks --------------------------------------------------------------------


def _serve() -> None:
    for package in PACKAGES:
        found = importlib.import_module(package)
        for module in pkgutil.walk_packages(found.__path__, f"{package}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    for name in MODULES:
        importlib.import_module(name)
    assert "torch" not in sys.modules
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        address = f"bitinglip-commands-{os.getpid()}"
        listener.bind("\0" + address)
        listener.listen(16)
        print(address, flush=True)  # noqa: T201  it is how the tests learn it
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in ready:
                return  # the tests are over
            connection, _ = listener.accept()
            with connection:
                if not os.fork():
                    listener.close()
                    _watch(connection)


def _watch(connection: socket.socket) -> NoReturn:
    """Run one command in a process below this one, and say how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, files, _, _ = socket.recv_fds(connection, 10, 3)
    with connection.makefile("rb") as reader:
        message = json.loads(reader.read(int(head)))
    pid = os.fork()
    if not pid:
        connection.close()
        _become(message, files)
    Thread(target=_end_with, args=(connection, os.pidfd_open(pid)), daemon=True).start()
    connection.sendall(b"%10d" % pid)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):
        connection.sendall(b"%d" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _end_with(connection: socket.socket, pidfd: int) -> None:
    """End the command when nobody waits for it any more, because the tests were ended."""
    with contextlib.suppress(OSError):
        connection.recv(1)
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def _become(message: dict[str, Any], files: list[int]) -> NoReturn:
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(message["env"])
    os.chdir(message["cwd"])
    os.setsid()
    sys.argv = [sys.argv[0], *message["arguments"]]
    code = 1
    try:
        runpy.run_module("cli", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = _code(end.code)
    except BaseException:  # noqa: BLE001  the interpreter does the same
        traceback.print_exc()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code & 0xFF)


def _code(given: "str | int | None") -> int:
    if isinstance(given, str):
        print(given, file=sys.stderr)  # noqa: T201  the interpreter does the same
        return 1
    return given or 0


if __name__ == "__main__":
    _serve()
