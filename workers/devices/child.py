"""Runs a short module in a fresh process of the workers' Python, with a limit on its time."""

import contextlib
import os
import platform
import signal
import subprocess
import sys

from workers.environment import worker_environment

_ENDING_SECONDS = 5.0  #: after a kill; a process stuck in the driver is left behind


class NotStarted(Exception):
    """The process could not be started; the message says why."""


class TooLate(Exception):
    """The process has not ended in time, and was killed."""


def run(module: str, seconds: float, visible: str | None = None) -> tuple[bytes, int]:
    """Return what the module prints and its exit code. Blocks.

    Raises NotStarted or TooLate.
    ``visible`` is CUDA_VISIBLE_DEVICES for it; None is that of this process.
    """
    environ = worker_environment(os.environ, platform.release())
    if visible is not None:
        environ["CUDA_VISIBLE_DEVICES"] = visible
    environ["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise NotStarted(error.strerror or type(error).__name__) from error
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        _end(process)
        raise TooLate from None
    return output, process.returncode


def _end(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_ENDING_SECONDS)
    if process.stdout is not None:
        process.stdout.close()
