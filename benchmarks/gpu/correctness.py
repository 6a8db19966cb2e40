"""Runs the tests of the engines on the card: each engine's output beside its library's own."""

import os
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.recorder import Recorder

_ROOT = Path(__file__).parents[2]
_COUNTS = re.compile(r"(\d+) (passed|failed|errors?|skipped|collected|tests? collected)")


def run_tests(record: Recorder) -> None:
    """Run tests/gpu, or collect one file of it without a card; ends the process if some fail."""
    target = "tests/gpu" if record.device == "cuda" else "tests/gpu/test_devices_cuda.py"
    command = [sys.executable, "-m", "pytest", target, "-q", "-p", "no:cacheprovider"]
    # Other versions of Python and torch have warnings of their own; this is no lint.
    command += ["-W", "default", "--durations=5", "--tb=short"]
    if record.device == "cpu":
        command.append("--collect-only")
    environ = dict(os.environ)
    if record.device == "cuda":
        environ["TRITON_INTERPRET"] = "0"  # or the tests' own settings might choose it here
    with subprocess.Popen(
        command, cwd=_ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:  # at once, for the log of a run that is cut off
            print(line, end="", flush=True)
            lines.append(line.strip())
    for count, what in _COUNTS.findall(lines[-1]):
        record.figure(f"tests {what.removeprefix('tests ')}", float(count))
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            record.figure("test that fails", line[:200])
    if process.returncode:
        sys.exit("Tests failed.")  # without a traceback, so that theirs is the end of the log
