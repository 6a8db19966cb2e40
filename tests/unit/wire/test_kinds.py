"""Each kind of inference is in every table, and the type checker finds where one is forgotten."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from bitinglip.scheduling.job import Job
from bitinglip.wire.kinds import KINDS

ROOT = Path(__file__).parents[3]

MADE_UP = '''

@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingJob(_JobBase):
    """A kind that nothing knows of."""

    kind: ClassVar[str] = "embedding"


Job = TextJob | ImageJob | SpeechJob | TranscriptionJob | EmbeddingJob
'''


def test_kinds_are_those_of_the_jobs() -> None:
    assert set(KINDS) == {job.kind for job in get_args(Job)}


@pytest.mark.timeout(300)
def test_kind_that_is_not_handled_does_not_type_check(tmp_path: Path) -> None:
    """What handles jobs by kind is exhaustive: a member of the union that is forgotten is found."""
    for package in ("bitinglip", "workers", "model_store", "cli"):
        shutil.copytree(ROOT / package, tmp_path / package)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    module = tmp_path / "bitinglip" / "scheduling" / "job.py"
    source = module.read_text()
    union = re.search(r"\n\nJob = [^\n]*\n", source)
    assert union is not None
    module.write_text(source.replace(union[0], MADE_UP))
    environ = {**os.environ, "MYPYPATH": str(tmp_path)}
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "-p", "bitinglip.wire"],
        cwd=tmp_path,
        env=environ,
        check=False,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 1, checked.stdout
    forgotten = [line for line in checked.stdout.splitlines() if '"assert_never"' in line]
    assert len(forgotten) >= 2, checked.stdout
    assert all("EmbeddingJob" in line for line in forgotten)
