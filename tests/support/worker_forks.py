"""Starts workers as forks of a process that has imported the engines' libraries already.

A worker of a real model imports for seconds and then computes for a tenth of them. A server that
``command_forks`` starts with these libraries forks a template before it runs. Each worker is a
fork of the template; it becomes a child of the server, with the program, environment and
descriptors that the server would have started a fresh interpreter with. Its command line is the
template's, and its resident memory holds the libraries of all engines.
"""

import atexit
import contextlib
import ctypes
import fcntl
import importlib
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from threading import Lock
from types import SimpleNamespace
from typing import Any, NoReturn

from workers import launcher
from workers.engines.registry import ENGINES
from workers.environment import worker_environment

_PR_SET_CHILD_SUBREAPER = 36
_NUMBER_BYTES = 10


def import_libraries() -> None:
    """Import the engines, with the environment that a worker has when it does so."""
    ours = dict(os.environ)
    os.environ.clear()
    os.environ.update(worker_environment(ours, platform.release()))
    for info in ENGINES.values():
        for module in (*info.preimport, info.module.partition(":")[0]):
            importlib.import_module(module)
    os.environ.clear()
    os.environ.update(ours)


def fork_workers() -> None:
    """Let this process, a server's before its first thread, start its workers as forks."""
    ours, theirs = socket.socketpair()
    server = os.getpid()
    if not os.fork():
        ours.close()
        _serve(theirs, server)
    theirs.close()
    template = _Template(ours)
    flags = subprocess._args_from_interpreter_flags  # type: ignore[attr-defined]
    there = SimpleNamespace(
        DEVNULL=subprocess.DEVNULL, Popen=template.start, _args_from_interpreter_flags=flags
    )
    setattr(launcher, "subprocess", there)  # noqa: B010  mypy knows a module there


# ---- in the server -----------------------------------------------------------------------------


class _Template:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = Lock()

    def start(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: int,
        stdout: int,
        stderr: int,
        pass_fds: Sequence[int],
        start_new_session: bool,
    ) -> "ForkedWorker":
        """Start a worker as ``subprocess.Popen`` does."""
        assert (stdin, stdout, start_new_session) == (subprocess.DEVNULL, stderr, True)
        *_, program, title = command
        message = {"program": program, "title": title, "env": dict(env), "fds": list(pass_fds)}
        data = json.dumps(message).encode()
        with self._lock, _adopting():
            socket.send_fds(self._sock, [_number(len(data))], [stdout, *pass_fds])
            self._sock.sendall(data)
            return ForkedWorker(int(_exactly(self._sock, _NUMBER_BYTES)))


class ForkedWorker:
    """Implements what a launcher uses of ``subprocess.Popen``, for a worker that is a fork."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


@contextlib.contextmanager
def _adopting() -> Any:
    """Make this process the parent of what its children leave behind."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0)


# ---- in the template ---------------------------------------------------------------------------


def _serve(sock: socket.socket, server: int) -> NoReturn:
    """Fork a worker for each message until the server has ended."""
    os.setpgid(0, 0)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    while True:
        head, files, _, _ = socket.recv_fds(sock, _NUMBER_BYTES, 16)
        if not head:
            os._exit(0)
        message = json.loads(_exactly(sock, int(head)))
        between, told = os.pipe()
        if not (middle := os.fork()):
            if not (worker := os.fork()):
                _become(message, files, server)
            os.write(told, _number(worker))
            os._exit(0)
        os.waitpid(middle, 0)  # its child is the server's now
        sock.sendall(os.read(between, _NUMBER_BYTES))
        for fd in (between, told, *files):
            os.close(fd)


def _become(message: dict[str, Any], files: list[int], server: int) -> NoReturn:
    """Run the program of a worker as a fresh interpreter would."""
    while os.getppid() != server:
        time.sleep(0.0005)
    wanted = [2, *message["fds"]]
    above = max(wanted) + 1
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, above) for fd in files]
    os.closerange(3, above)
    for fd, number in zip(moved, wanted, strict=True):
        os.dup2(fd, number)
    os.closerange(above, max(moved) + 1)
    os.dup2(2, 1)
    os.setsid()
    os.environ.clear()
    os.environ.update(message["env"])
    sys.argv = ["-c", message["title"]]
    for signalled in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(signalled, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, write_through=True)  # type: ignore[union-attr]
    code = 1
    try:
        exec(message["program"], {"__name__": "__main__"})
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  the interpreter does the same
        traceback.print_exc()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code & 0xFF)


def _number(number: int) -> bytes:
    return b"%*d" % (_NUMBER_BYTES, number)


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (more := sock.recv(size - len(data))):
            raise EOFError
        data += more
    return data
