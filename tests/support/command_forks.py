"""Runs commands in processes forked from one that has imported the product already.

A command imports for a second and works for a tenth of it, and tests run hundreds of them. Each
still is a process of its own, with the environment, folder, input and outputs that it is given,
and ends as one does that ``python -m cli`` starts.

All processes of a test run share the one that forks, and a second one that has imported the
libraries of the engines too: servers are forked from it whose workers are forks themselves.
"""

import atexit
import contextlib
import fcntl
import functools
import gc
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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO, NoReturn

from tests.support import worker_forks

ROOT = Path(__file__).parents[2]
_HEAD_BYTES = 10
_STAY, _LIBRARIES = 0, -1  #: in place of a message's length
_LIBRARIES_SUFFIX = "-libraries"
#: what most commands import, and what is imported by name only: without torch
PACKAGES = ("cli", "model_store")
MODULES = (
    "aiosqlite", "alembic.command", "bitinglip.access.keys", "bitinglip.app", "httpx",
    "bitinglip.db.migrations.upgrade", "bitinglip.server", "rich.table", "rich.progress",
    "sqlalchemy.dialects.sqlite.aiosqlite", "workers.devices",
)  # fmt: skip


class Forked:
    """Implements what tests use of ``subprocess.Popen``, for a command in a forked process."""

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
    forked_workers: bool = False,
) -> Forked:
    """Start ``python -m cli`` as ``subprocess.Popen`` does."""
    message = json.dumps({"arguments": list(arguments), "env": dict(env), "cwd": str(cwd)}).encode()
    sock = _connection(_with_libraries() if forked_workers else _address())
    files = [each.fileno() for each in (stdin, stdout, stderr)]
    socket.send_fds(sock, [_head(len(message))], files)
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
    """Find the process that forks, or start it; it ends after the last one that has found it."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or os.getpid()
    address = f"bitinglip-commands-{run}"
    with _alone():
        if not _found(address):
            process = subprocess.Popen(
                [sys.executable, "-m", __name__, address],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                cwd=ROOT,
                start_new_session=True,
            )
            assert process.stdout is not None
            with process.stdout as told:
                assert told.readline(), "the process that forks could not be started"
            process.returncode = 0  # it outlives this process, if others have found it
            assert _found(address)
    return address


@functools.cache
def _with_libraries() -> str:
    """Find the process that has imported the engines too, or have it forked."""
    plain = _address()
    address = plain + _LIBRARIES_SUFFIX
    with _alone():
        if not _found(address):
            with _connection(plain) as sock:
                sock.sendall(_head(_LIBRARIES))
                assert sock.recv(1), "the libraries could not be imported"
            assert _found(address)
    return address


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keep the other processes of the test run out."""
    with open(__file__, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _found(address: str) -> bool:
    """Return whether a process listens there, which then stays until this one ends."""
    try:
        sock = _connection(address)
    except ConnectionRefusedError:
        return False
    sock.sendall(_head(_STAY))
    atexit.register(sock.close)
    return True


def _connection(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect("\0" + address)
    except OSError:
        sock.close()
        raise
    return sock


def _head(number: int) -> bytes:
    return b"%*d" % (_HEAD_BYTES, number)


# ---- the process that forks --------------------------------------------------------------------


def _serve(address: str) -> None:
    for package in PACKAGES:
        found = importlib.import_module(package)
        for module in pkgutil.walk_packages(found.__path__, f"{package}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    for name in MODULES:
        importlib.import_module(name)
    assert "torch" not in sys.modules
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    _listen(address)


def _listen(address: str, told: "socket.socket | None" = None) -> None:
    """Fork for each connection, until all clients that keep it open have ended."""
    gc.collect()
    gc.freeze()  # a collector's marks in the forks would copy what they share
    staying: list[socket.socket] = []
    libraries = told is not None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + address)
        listener.listen(64)
        if told is None:
            print("listening", flush=True)  # noqa: T201  it is how the tests learn it
        else:
            told.sendall(b"+")
            told.close()
        began = False
        while staying or not began:
            ready, _, _ = select.select([listener, *staying], [], [])
            staying = [each for each in staying if each not in ready]
            if listener not in ready:
                continue
            connection, _ = listener.accept()
            head, files, _, _ = socket.recv_fds(connection, _HEAD_BYTES, 3)
            if int(head) == _STAY:
                staying.append(connection)
                began = True
                continue
            if not os.fork():
                listener.close()
                for each in staying:
                    each.close()
                if int(head) == _LIBRARIES:
                    _with_engines(address + _LIBRARIES_SUFFIX, connection)
                else:
                    _watch(connection, int(head), files, libraries)
            connection.close()
            for fd in files:
                os.close(fd)


def _with_engines(address: str, connection: socket.socket) -> NoReturn:
    """Import the engines, and fork servers whose workers are forks."""
    worker_forks.import_libraries()
    _listen(address, connection)
    os._exit(0)


def _watch(
    connection: socket.socket, size: int, files: list[int], forked_workers: bool
) -> NoReturn:
    """Run one command in a process below this one, and say how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with connection.makefile("rb") as reader:
        message = json.loads(reader.read(size))
    pid = os.fork()
    if not pid:
        connection.close()
        _become(message, files, forked_workers)
    Thread(target=_end_with, args=(connection, os.pidfd_open(pid)), daemon=True).start()
    connection.sendall(b"%10d" % pid)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):
        connection.sendall(b"%d" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _end_with(connection: socket.socket, pidfd: int) -> None:
    """End the command once its test has ended without waiting for it."""
    with contextlib.suppress(OSError):
        connection.recv(1)
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def _become(message: dict[str, Any], files: list[int], forked_workers: bool) -> NoReturn:
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(message["env"])
    os.chdir(message["cwd"])
    os.setsid()
    sys.argv = [sys.argv[0], *message["arguments"]]
    if forked_workers:
        worker_forks.fork_workers()
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
    _serve(sys.argv[1])
