"""Forks the processes of a test run from one that has imported what they all import.

pytest-xdist starts an interpreter for each, and each would import torch, transformers and the
product for seconds. The interpreter is this file instead: it hands its input and output to a fork,
and waits until that has ended.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import pytest

_HEAD_BYTES = 10
_PLAIN = "popen"  #: what pytest-xdist calls an interpreter of its own
#: what tests of all kinds import: seconds of CPU, and none that only some files need
MODULES = (
    "bitinglip.app", "bitinglip.server", "httpx",
    "workers.engines.embedding.preimport", "workers.engines.speech.preimport",
    "workers.engines.text.engine", "workers.engines.text.quantized",
    "workers.engines.transcription.preimport",
)  # fmt: skip


def fork_processes(config: "pytest.Config") -> None:
    """Let pytest-xdist have forks of one process, which ends with this one.

    A single process would gain nothing, and the measurement of coverage begins with imports.
    """
    asked = config.getoption("tx", None) or []
    if len(asked) < 2 or set(asked) != {_PLAIN} or config.getoption("cov_source", None):
        return
    address = f"bitinglip-tests-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + address)
        listener.listen(64)
        program = f"from {__name__} import serve; serve({listener.fileno()})"
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )

    def end() -> None:
        process.communicate()

    config.add_cleanup(end)
    words = [sys.executable, "-I", "-S", __file__, address]
    config.option.tx = [f"{_PLAIN}//python={shlex.join(words)}"] * len(asked)


def _stand_in(address: str, program: str) -> int:
    """Have a fork run the program in place of this interpreter, and return its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the fork hears of it too
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("\0" + address)
        message = {"program": program, "env": dict(os.environ), "cwd": os.getcwd()}
        data = json.dumps(message).encode()
        socket.send_fds(sock, [b"%*d" % (_HEAD_BYTES, len(data))], [0, 1, 2])
        sock.sendall(data)
        return int(sock.recv(10) or b"1")


# ---- the process that forks --------------------------------------------------------------------


def serve(fd: int) -> None:
    """Import, and fork for each interpreter, until the test run has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()
    for name in MODULES:
        importlib.import_module(name)
    gc.freeze()  # a collector's marks in the forks would copy what they share
    gc.enable()
    with socket.socket(fileno=fd) as listener:
        while True:
            ready, _, _ = select.select([listener.fileno(), 0], [], [])
            if 0 in ready:
                break
            connection, _ = listener.accept()
            with connection:
                head, files, _, _ = socket.recv_fds(connection, _HEAD_BYTES, 3)
                if not os.fork():
                    listener.close()
                    _watch(connection, int(head), files)
            for each in files:
                os.close(each)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()  # what they have used counts as this process's, as ``time`` tells it


def _watch(connection: socket.socket, size: int, files: list[int]) -> NoReturn:
    """Run the program in a process below this one, which ends with the interpreter it is for."""
    with connection.makefile("rb") as reader:
        message = json.loads(reader.read(size))
    if not (pid := os.fork()):
        connection.close()
        _become(message, files)
    for each in files:
        os.close(each)
    ended = os.pidfd_open(pid)
    ready, _, _ = select.select([ended, connection.fileno()], [], [])
    if ended not in ready:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):
        connection.sendall(b"%d" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _become(message: dict[str, Any], files: list[int]) -> NoReturn:
    """Be the interpreter that was asked for, but for what it has imported."""
    import atexit
    import traceback
    from types import ModuleType

    for number, each in enumerate(files):
        os.dup2(each, number)
        os.close(each)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(message["env"])
    os.chdir(message["cwd"])
    sys.argv = ["-c"]
    main = sys.modules["__main__"] = ModuleType("__main__")
    code = 1
    try:
        exec(message["program"], vars(main))
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


if __name__ == "__main__":
    sys.exit(_stand_in(sys.argv[1], sys.argv[-1]))
