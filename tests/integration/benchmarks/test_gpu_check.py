"""The check of the whole product on a card, rehearsed on the CPU."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.correctness import follow
from benchmarks.gpu.parts import PARTS, Part
from benchmarks.gpu.recorder import Recorder, read_figures
from benchmarks.gpu.report import write
from benchmarks.gpu.supervisor import Outcome, run_part

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


def test_gpu_check_cut_off_in_a_part_has_told_what_that_measured(tmp_path: Path) -> None:
    """Its results are on the disk half a second after each figure, whatever ends it."""
    seen: list[Outcome] = []
    run_part(part("slow", "hang"), "cpu", "tiny", tmp_path, 6, tmp_path, told=seen.append)
    assert [each.state for each in seen] == ["running"]
    assert [each.name for each in seen[0].figures] == ["server"]
    table = write(tmp_path, "command", seen)
    assert "| slow | running |" in table
    assert json.loads((tmp_path / "results.json").read_text())["parts"][0]["figures"]


def test_gpu_check_s_first_parts_keep_to_seven_minutes() -> None:
    names = [each.name for each in PARTS]
    assert sum(each.limit for each in PARTS[: names.index("speech") + 1]) <= 7 * 60
    assert names[:5] == ["ceilings", "tests", "text", "attention", "text steps"]


def test_gpu_check_tells_of_each_file_of_tests_as_it_ends(tmp_path: Path) -> None:
    record = Recorder("cuda", "real", tmp_path, tmp_path / "figures")
    lines = """
tests/gpu/test_text.py::test_a[one] PASSED   [ 10%]
tests/gpu/test_text.py::test_b FAILED   [ 20%]
tests/gpu/test_image.py::test_c SKIPPED (no) [ 30%]
""".splitlines(keepends=True)
    assert follow(record, [*lines, "== 1 failed, 1 passed, 1 skipped ==\n"]).startswith("== 1")
    found = {each.name: each.value for each in read_figures(record.path)}
    assert found == {
        "test that fails": "text: test_b",
        "text": "1 passed, 1 failed",
        "image": "1 skipped",
    }


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
