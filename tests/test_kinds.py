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
SUCCESS = """

class VideoDone(Succeeds, tag="video_done", frozen=True, kw_only=True):
    id: str


Success = TextDone | ImageDone | SpeechDone | TranscriptionDone | EmbeddingDone | VideoDone
"""
EVENTS = """

class VideoDelta(OfJob, tag="frames", frozen=True, kw_only=True):
    id: str


JobEvent = Started | TextDelta | Progress | AudioDelta | SegmentDelta | VideoDelta | Final
"""

#: the functions that tell kinds apart: each is found where the made-up kind is forgotten
OF_JOBS = {
    "bitinglip/work/__init__.py": ["_class_of"],
    "bitinglip/wire/kinds.py": ["result_of", "usage_of"],
}
OF_SUCCESSES = {"bitinglip/work/__init__.py"}
PACKAGES = ("work", "wire", "scheduling", "guard", "results")
OF_EVENTS = {"bitinglip/scheduling/event_log.py", "bitinglip/wire/events.py"}


def test_kind_is_named_in_few_modules() -> None:
    """A new kind edits these and no others: its own modules are new, the engines' registry, the
    estimate of memory and the store's kinds know it by its name. Upstreams know the kinds that
    other servers are asked for, which a new one need not be."""
    named = set()
    for package in ("bitinglip", "workers", "cli", "model_store"):
        for path in (ROOT / package).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            if "embedding" in name or name.startswith("bitinglip/upstreams/"):
                continue
            if re.search(r"\bEmbedding(Job|Done|Traits)\b", path.read_text()):
                named.add(name)
    assert named == {
        "workers/protocol/__init__.py",
        "workers/protocol/jobs.py",  # its messages, which may as well be in a module of their own
        "workers/protocol/events.py",
        "bitinglip/work/__init__.py",
        "bitinglip/wire/kinds.py",
        "bitinglip/wire/events.py",  # its vectors are encoded beside the event loop
    }


def test_kinds_are_those_of_the_jobs() -> None:
    assert set(KINDS) == {kind_of(message) for message in get_args(protocol.Job)}


@pytest.mark.timeout(300)
def test_kind_that_is_not_handled_does_not_type_check(tmp_path: Path) -> None:
    """Check that code which handles jobs by kind is exhaustive: a made-up member of the union is an
    error wherever it is not handled."""
    for package in ("bitinglip", "workers", "model_store", "cli"):
        shutil.copytree(ROOT / package, tmp_path / package)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    if (cache := ROOT / ".mypy_cache").is_dir():  # what it knows of the libraries saves seconds
        shutil.copytree(cache, tmp_path / ".mypy_cache")
    replace_union(tmp_path / "workers/protocol/__init__.py", "Job", JOBS)
    replace_union(tmp_path / "workers/protocol/__init__.py", "Success", SUCCESS)
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
    assert {line.partition(":")[0] for line in errors if "VideoDone" in line} >= OF_SUCCESSES
    assert {line.partition(":")[0] for line in errors if "VideoDelta" in line} == OF_EVENTS


def replace_union(module: Path, name: str, made_up: str) -> None:
    source = module.read_text()
    union = re.search(rf"(?m)^{name} = [^\n]*\n", source)
    assert union is not None
    module.write_text(source.replace(union[0], made_up))
