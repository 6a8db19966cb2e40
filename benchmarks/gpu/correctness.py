"""Runs the tests of the engines on the card: each engine's output beside its library's own."""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from benchmarks.gpu.recorder import Recorder

_ROOT = Path(__file__).parents[2]
_COUNTS = re.compile(r"(\d+) (passed|failed|errors?|skipped|collected|tests? collected)")
_RESULT = re.compile(r"tests/gpu/test_(\w+)\.py::(.+?) (PASSED|FAILED|ERROR|SKIPPED)\b")
_FIRST = "test_text_engine_cuda.py"  #: what most of a card's work is


def run_tests(record: Recorder) -> None:
    """Run tests/gpu, or collect one file of it without a card; ends the process if some fail."""
    if record.device == "cuda":
        found = sorted((_ROOT / "tests/gpu").glob("test_*.py"), key=lambda e: e.name != _FIRST)
        targets = [str(each.relative_to(_ROOT)) for each in found]
    else:
        targets = ["--collect-only", "tests/gpu/test_devices_cuda.py"]
    command = [sys.executable, "-m", "pytest", *targets, "-v", "-p", "no:cacheprovider"]
    # Other versions of Python and torch have warnings of their own; this is no lint.
    command += ["-W", "default", "--durations=5", "--tb=short"]
    environ = dict(os.environ)
    if record.device == "cuda":
        environ["TRITON_INTERPRET"] = "0"  # or the tests' own settings might choose it here
    with subprocess.Popen(
        command, cwd=_ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        last = follow(record, process.stdout)
    for count, what in _COUNTS.findall(last):
        record.figure(f"tests {what.removeprefix('tests ')}", float(count))
    if process.returncode:
        sys.exit("Tests failed.")  # without a traceback, so that theirs is the end of the log


def follow(record: Recorder, lines: Iterable[str]) -> str:
    """Record what each file has passed as it ends, and what fails at once; return the last line.

    So a run that is cut off has told what it knew.
    """
    counts: Counter[str] = Counter()
    file = last = ""

    def ended() -> None:
        if file:
            told = ", ".join(f"{count} {what.lower()}" for what, count in counts.items())
            record.figure(file, told)

    for line in lines:
        print(line, end="", flush=True)  # at once, for the log
        last = line.strip() or last
        if (result := _RESULT.search(line)) is None:
            continue
        if result[1] != file:
            ended()
            file = result[1]
            counts.clear()
        counts[result[3]] += 1
        if result[3] in ("FAILED", "ERROR"):
            record.figure("test that fails", f"{file}: {result[2]}"[:200])
    ended()
    return last
