"""Each kind of inference is in every table, and the type checker finds where one is forgotten."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from bitinglip.scheduling.job import kind_of
from bitinglip.wire.kinds import KINDS
from workers import protocol

pytestmark = pytest.mark.long_file
ROOT = Path(__file__).parents[1]

#: a kind that nothing knows of, in the unions of the protocol: its job and one of its events
JOBS = """

class VideoJob(msgspec.Struct, tag="video", frozen=True, kw_only=True):
    id: str
    stream: bool = True


Job = TextJob | ImageJob | SpeechJob | TranscriptionJob | EmbeddingJob | VideoJob
"""
EVENTS = """

class VideoDelta(OfJob, tag="frames", frozen=True, kw_only=True):
    id: str


JobEvent = Started | TextDelta | Progress | AudioDelta | SegmentDelta | VideoDelta | Final
"""

#: the functions that tell kinds apart: each is found where the made-up kind is forgotten
OF_JOBS = {
    "bitinglip/scheduling/kinds.py": [
        "cost",
        "cost_done",
        "affinity",
        "input_bytes",
        "without_input",
        "upload_paths",
        "event_types",
        "most_event_bytes",
    ],
    "bitinglip/scheduling/usage.py": ["most_used", "used"],
    "bitinglip/wire/kinds.py": ["result_of", "usage_of"],
    "bitinglip/guard/inputs.py": ["texts_of"],
    "bitinglip/guard/outputs.py": ["output_of"],
    "bitinglip/results/cache/identity.py": ["repeatable", "canonical"],
}
PACKAGES = ("wire", "scheduling", "guard", "results")
OF_EVENTS = {"bitinglip/scheduling/event_log.py", "bitinglip/wire/events.py"}


def test_kinds_are_those_of_the_jobs() -> None:
    assert set(KINDS) == {kind_of(message) for message in get_args(protocol.Job)}


@pytest.mark.timeout(300)
def test_kind_that_is_not_handled_does_not_type_check(tmp_path: Path) -> None:
    """What handles jobs by kind is exhaustive: a member of the union that is forgotten is found."""
    for package in ("bitinglip", "workers", "model_store", "cli"):
        shutil.copytree(ROOT / package, tmp_path / package)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    if (cache := ROOT / ".mypy_cache").is_dir():  # what it knows of the libraries saves seconds
        shutil.copytree(cache, tmp_path / ".mypy_cache")
    replace_union(tmp_path / "workers/protocol/__init__.py", "Job", JOBS)
    replace_union(tmp_path / "workers/protocol/__init__.py", "JobEvent", EVENTS)
    packages = [word for name in PACKAGES for word in ("-p", f"bitinglip.{name}")]
    environ = {**os.environ, "MYPYPATH": str(tmp_path)}
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", *packages],
        cwd=tmp_path,
        env=environ,
        check=False,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 1, checked.stdout
    errors = [line for line in checked.stdout.splitlines() if ": error:" in line]
    for path, functions in OF_JOBS.items():
        found = [line for line in errors if line.startswith(path) and "VideoJob" in line]
        assert len(found) == len(functions), checked.stdout
    assert {line.partition(":")[0] for line in errors if "VideoDelta" in line} == OF_EVENTS


def replace_union(module: Path, name: str, made_up: str) -> None:
    source = module.read_text()
    union = re.search(rf"(?m)^{name} = [^\n]*\n", source)
    assert union is not None
    module.write_text(source.replace(union[0], made_up))
