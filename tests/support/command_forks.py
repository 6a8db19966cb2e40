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
from typing import Any, BinaryIO, NoReturn

ROOT = Path(__file__).parents[2]
#: what most commands import, and what is imported by name only: without torch
PACKAGES = ("cli", "model_store")
MODULES = (
    "aiosqlite", "alembic.command", "bitinglip.access.keys", "bitinglip.app", "httpx",
    "bitinglip.db.migrations.upgrade", "bitinglip.server", "rich.table", "rich.progress",
    "sqlalchemy.dialects.sqlite.aiosqlite", "workers.devices",
)  # fmt: skip


def run(
    arguments: Sequence[str], *, stdin: bytes, env: Mapping[str, str], cwd: Path, timeout: float
) -> "subprocess.CompletedProcess[bytes]":
    """Run ``python -m cli`` as ``subprocess.run`` does, with files in place of pipes."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        files[0].write(stdin)
        files[0].seek(0)
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.settimeout(timeout)
        sock.connect(_address())
        message = json.dumps({"arguments": list(arguments), "env": dict(env), "cwd": str(cwd)})
        socket.send_fds(sock, [b"%10d" % len(message.encode())], [each.fileno() for each in files])
        sock.sendall(message.encode())
        reader = stack.enter_context(sock.makefile("rb"))
        pid = int(reader.readline())
        try:
            code = int(reader.readline())
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(list(arguments), timeout) from None
        outputs = [_whole(each) for each in files[1:]]
        return subprocess.CompletedProcess([*arguments], code, *outputs)


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
    address = process.stdout.readline().decode().strip()
    atexit.register(process.communicate)
    return "\0" + address


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
    connection.sendall(b"%d\n" % pid)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):
        connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


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
