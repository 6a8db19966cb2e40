"""The check of the whole product on a card, rehearsed on the CPU."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.parts import PARTS, Part

pytestmark = pytest.mark.long_file
ROOT = Path(__file__).parents[3]
MODULE = "tests.support.gpu_check_parts"


def part(name: str, function: str, limit: float = 60) -> Part:
    return Part(name, f"{MODULE}:{function}", limit, f"Does {name} work?")


def run(out: Path, *parts: Part, minutes: float = 2) -> tuple[int, dict[str, Any], str]:
    """Exit code, outcomes by part and the table of a check of those parts."""
    argv = ["--device", "cpu", "--shape", "tiny", "--out", str(out), "--minutes", str(minutes)]
    code = main(argv, parts)
    results = json.loads((out / "results.json").read_text())
    return code, {each["part"]: each for each in results["parts"]}, (out / "table.md").read_text()


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_gpu_check_continues_after_parts_that_fail_hang_or_run_out_of_memory(
    tmp_path: Path,
) -> None:
    code, outcomes, table = run(
        tmp_path,
        part("good", "succeed"),
        part("bad", "fail"),
        part("stuck", "hang", limit=8),
        part("large", "run_out_of_memory"),
        part("last", "relate"),
    )
    states = {name: outcome["state"] for name, outcome in outcomes.items()}
    assert states == {
        "good": "passed",
        "bad": "failed",
        "stuck": "timed out",
        "large": "out of memory",
        "last": "passed",
    }
    assert code == 1
    assert outcomes["bad"]["figures"][0]["name"] == "before it failed"
    assert "ValueError: the card said no" in outcomes["bad"]["error"]
    assert "ValueError: the card said no" in table
    (share,) = (figure["share"] for figure in outcomes["last"]["figures"])
    assert share == 0.25
    assert "| step | 0.5 ms | 25 % of copy |  |  |" in table
    assert r"| bytes | 1234 B/s |  | 1,234 | a \| b |" in table
    assert b"the card said no" in (tmp_path / "log.txt").read_bytes()
    assert_server_is_gone(outcomes["stuck"])


def test_gpu_check_leaves_no_process_of_a_part_that_was_killed(tmp_path: Path) -> None:
    _, outcomes, _ = run(tmp_path, part("killed", "die"))
    assert_server_is_gone(outcomes["killed"])


def assert_server_is_gone(outcome: dict[str, Any]) -> None:
    """Check that the server which a part had started does not run."""
    (figure,) = outcome["figures"]
    pid = int(figure["value"])
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_gpu_check_writes_results_after_each_part_and_names_the_rest(tmp_path: Path) -> None:
    """A cut-off keeps what was done, and says what was not."""
    parts = (part("good", "succeed"), part("slow", "hang"), part("late", "relate"))
    code, outcomes, table = run(tmp_path, *parts, minutes=0.12)
    states = [outcome["state"] for outcome in outcomes.values()]
    assert states == ["passed", "timed out", "not begun"]
    assert code == 1
    assert "It was not begun" in table


@pytest.mark.rehearsal
@pytest.mark.timeout(660)
def test_gpu_check_rehearsal_passes_in_every_part(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--shape", "tiny"]
    command += ["--preload", "--minutes", "10", "--out", str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=640)
    results = json.loads((tmp_path / "results.json").read_text())
    failed = [each["error"] for each in results["parts"] if each["state"] != "passed"]
    assert not failed, failed[0]
    assert done.returncode == 0
    assert [each["part"] for each in results["parts"]] == [each.name for each in PARTS]
    assert all(each["figures"] for each in results["parts"])
    assert done.stdout.endswith((tmp_path / "table.md").read_text() + "\n")
