"""Plays a compromised worker by an engine that runs the code in prompts.

Importing this module adds it to the table of engines, in the test's process and in the worker's.
"""

import contextlib
import ctypes
import errno
import json
import mmap  # noqa: F401  a name for trials
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from workers.confinement import seccomp
from workers.engines.registry import ENGINES, EngineInfo
from workers.protocol import Event, Load, Ready, TextChoice, TextDone, TextJob

libc = ctypes.CDLL(None, use_errno=True)
ENGINES["probe"] = EngineInfo(f"{__name__}:ProbeEngine", preimport=(__name__,))
ENGINES["threaded probe"] = EngineInfo(
    f"{__name__}:ProbeEngine", preimport=("tests.support.probe_thread",)
)


class ProbeEngine:
    def __init__(self) -> None:
        self._jobs: list[TextJob] = []

    def load(self, spec: Load, _progress: Callable[[float], None]) -> Ready:
        return Ready(slots=64, device=spec.device)

    def prepare(self, job: TextJob) -> TextJob:
        return job

    def submit(self, prepared: TextJob) -> None:
        self._jobs.append(prepared)

    def cancel(self, job_id: str) -> None: ...

    def step(self) -> list[Event]:
        jobs, self._jobs = self._jobs, []
        return [_done(job.id, run(**json.loads(job.prompt or ""))) for job in jobs]

    @property
    def in_flight(self) -> int:
        return len(self._jobs)

    def device_bytes(self) -> int | None:
        return None

    def books(self) -> dict[str, int]:
        return {}

    def close(self) -> None: ...


def run(code: str, names: dict[str, Any] | None = None) -> str:
    """Evaluate an expression; return its value, or the name of the error that it raised."""
    try:
        return str(eval(code, {**globals(), **(names or {})}))
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    except Exception as error:  # noqa: BLE001  whatever a trial ends in is its answer
        return repr(error)


def call(name: str, *arguments: int) -> int:
    """Call a system call by its name. Raises OSError."""
    architecture = seccomp.architecture()
    assert architecture is not None
    number = architecture.numbers[name]
    result = int(libc.syscall(ctypes.c_long(number), *(ctypes.c_long(each) for each in arguments)))
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def read(path: str) -> str:
    with open(path, "rb") as file:
        return f"{len(file.read(1 << 16))} bytes"


def write(path: str, offset: int = 0) -> str:
    with open(path, "r+b" if os.path.exists(path) else "wb") as file:
        file.seek(offset)
        file.write(b"x")
    return "written"


def connect(family: int, address: object) -> str:
    with socket.socket(family) as found:
        found.settimeout(20)
        found.connect(address)  # type: ignore[arg-type]
    return "connected"


def peek(pid: int, address: int) -> int:
    """Read a byte of another process's memory."""
    there = (ctypes.c_size_t * 2)(address, 1)
    byte = ctypes.create_string_buffer(1)
    here = (ctypes.c_size_t * 2)(ctypes.addressof(byte), 1)
    return call("process_vm_readv", pid, ctypes.addressof(here), 1, ctypes.addressof(there), 1, 0)


def start_program() -> str:
    subprocess.run(["/bin/true"], check=True)
    return "started"


def fork() -> str:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "forked"


def leave_session() -> str:
    """Start a child that is not ended with its worker."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
        except OSError as error:
            os._exit(error.errno or 1)
        os._exit(0)
    number = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if number:
        raise OSError(number, os.strerror(number))
    return "left"


def send_signal(pid: int) -> str:
    os.kill(pid, signal.SIGCONT)
    return "sent"


def start_thread(function: Callable[..., object], *arguments: object) -> str:
    """Call a function in a thread of its own, as libraries do. Raises what it raises."""
    with ThreadPoolExecutor(1) as pool:
        return str(pool.submit(function, *arguments).result())


def move(path: str, target: str) -> str:
    """Move a file away and back."""
    os.rename(path, target)
    os.rename(target, path)
    return "moved"


def in_new_folder(path: str) -> str:
    """Use temporary files as libraries do."""
    os.mkdir(path)
    write(f"{path}/a")
    os.rename(f"{path}/a", f"{path}b")
    os.unlink(f"{path}b")
    os.rmdir(path)
    return "done"


def link(path: str, target: str) -> str:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    os.link(target, path)
    return "linked"


def _done(job_id: str, text: str) -> TextDone:
    return TextDone(
        id=job_id,
        choices=(TextChoice(text=text, finish_reason="stop"),),
        prompt_tokens=0,
        completion_tokens=0,
    )
