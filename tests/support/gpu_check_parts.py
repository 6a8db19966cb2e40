"""Parts that fail in every way that a part of the GPU check can fail."""

import os
import signal
import subprocess
import sys
import time

from benchmarks.gpu.recorder import Recorder


def succeed(record: Recorder) -> None:
    record.ceiling("copy", 200.0)
    record.figure("bytes", 1234.5, "B/s", expected="1,234", note="a | b")


def relate(record: Recorder) -> None:
    record.figure("step", 0.5, "ms", achieved=("copy", 50.0))


def fail(record: Recorder) -> None:
    record.figure("before it failed", 1.0)
    raise ValueError("the card said no")


def run_out_of_memory(_record: Recorder) -> None:
    raise RuntimeError("CUDA error: out of memory")


def die(record: Recorder) -> None:
    """Start a server as above, and be killed, as by the kernel."""
    program = [sys.executable, "-c", "import time; time.sleep(600)"]
    server = subprocess.Popen(program, start_new_session=True)
    record.figure("server", float(server.pid))
    time.sleep(2)
    os.kill(os.getpid(), signal.SIGKILL)


def hang(record: Recorder) -> None:
    """Start a server that leads a session of its own, as ours do, and never end."""
    program = [sys.executable, "-c", "import time; time.sleep(600)"]
    server = subprocess.Popen(program, start_new_session=True)
    record.figure("server", float(server.pid))
    time.sleep(600)
