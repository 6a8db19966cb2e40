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
from tests.support.fork_client import HEAD_BYTES, begin, connection, head

ROOT = Path(__file__).parents[2]
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
    sock = connection(_with_libraries() if forked_workers else address())
    files = [each.fileno() for each in (stdin, stdout, stderr)]
    return Forked(begin(sock, arguments, env=env, cwd=str(cwd), files=files), sock)


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
def address() -> str:
    """Find the process that forks, or start it; it ends after the last one that has found it."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or os.getpid()
    found = f"bitinglip-commands-{run}"
    with _alone():
        if not _found(found):
            process = subprocess.Popen(
                [sys.executable, "-m", __name__, found],
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
            assert _found(found)
    return found


@functools.cache
def _with_libraries() -> str:
    """Find the process that has imported the engines too, or have it forked."""
    plain = address()
    found = plain + _LIBRARIES_SUFFIX
    with _alone():
        if not _found(found):
            with connection(plain) as sock:
                sock.sendall(head(_LIBRARIES))
                assert sock.recv(1), "the libraries could not be imported"
            assert _found(found)
    return found


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keep the other processes of the test run out."""
    with open(__file__, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _found(name: str) -> bool:
    """Return whether a process listens there, which then stays until this one ends."""
    try:
        sock = connection(name)
    except ConnectionRefusedError:
        return False
    sock.sendall(head(_STAY))
    atexit.register(sock.close)
    return True


# ---- the process that forks --------------------------------------------------------------------


def _serve(name: str) -> None:
    for package in PACKAGES:
        found = importlib.import_module(package)
        for module in pkgutil.walk_packages(found.__path__, f"{package}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    for each in MODULES:
        importlib.import_module(each)
    assert "torch" not in sys.modules
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    _listen(name)


def _listen(name: str, told: "socket.socket | None" = None) -> None:
    """Fork for each connection, until all clients that keep it open have ended."""
    gc.collect()
    gc.freeze()  # a collector's marks in the forks would copy what they share
    staying: list[socket.socket] = []
    libraries = told is not None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + name)
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
            asking, _ = listener.accept()
            first, files, _, _ = socket.recv_fds(asking, HEAD_BYTES, 3)
            if int(first) == _STAY:
                staying.append(asking)
                began = True
                continue
            if not os.fork():
                listener.close()
                for each in staying:
                    each.close()
                if int(first) == _LIBRARIES:
                    _with_engines(name + _LIBRARIES_SUFFIX, asking)
                else:
                    _watch(asking, int(first), files, libraries)
            asking.close()
            for fd in files:
                os.close(fd)


def _with_engines(name: str, asking: socket.socket) -> NoReturn:
    """Import the engines, and fork servers whose workers are forks."""
    worker_forks.import_libraries()
    _listen(name, asking)
    os._exit(0)


def _watch(asking: socket.socket, size: int, files: list[int], forked_workers: bool) -> NoReturn:
    """Run one command in a process below this one, and say how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with asking.makefile("rb") as reader:
        message = json.loads(reader.read(size))
    pid = os.fork()
    if not pid:
        asking.close()
        _become(message, files, forked_workers)
    Thread(target=_end_with, args=(asking, os.pidfd_open(pid)), daemon=True).start()
    asking.sendall(b"%10d" % pid)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):
        asking.sendall(b"%d" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _end_with(asking: socket.socket, pidfd: int) -> None:
    """End the command once its test has ended without waiting for it."""
    with contextlib.suppress(OSError):
        asking.recv(1)
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def _become(message: dict[str, Any], files: list[int], forked_workers: bool) -> NoReturn:
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    _open_streams()
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


def _open_streams() -> None:
    """Open the standard streams again: those of the process that forks know of its files that one
    can seek in them, which pipes cannot."""
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        old = getattr(sys, name)
        options: dict[str, Any] = {"encoding": old.encoding, "errors": old.errors}
        buffering = 1 if name == "stderr" or os.isatty(number) else -1
        setattr(sys, name, open(number, mode, buffering, closefd=False, **options))  # noqa: SIM115  it lives as long as the process


def _code(given: "str | int | None") -> int:
    if isinstance(given, str):
        print(given, file=sys.stderr)  # noqa: T201  the interpreter does the same
        return 1
    return given or 0


if __name__ == "__main__":
    _serve(sys.argv[1])
