"""Converts pickled weights where the operator allows them; never opens them here.

A process without secrets reads the tensors and nothing else, and writes safetensors, which are
then looked at as all others are.
"""

import json
import os
import re
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from model_store.disk import check_room
from model_store.errors import BadFiles, PullCancelled
from model_store.headers import read_header
from model_store.progress import Counter, Progress
from model_store.selection import WEIGHTS

_WEIGHTS = re.compile(r"pytorch_model(?P<shard>-\d+-of-\d+)?\.bin", re.ASCII)
_READER = "workers.unpickle"
_MOST_SECONDS = 3600
_GLANCE_SECONDS = 0.1


def pickled(paths: Iterable[str]) -> list[str]:
    """Return a transformers model's pickled weights; whole ones come before shards."""
    found = {path: match for path in sorted(paths) if (match := _WEIGHTS.fullmatch(path))}
    whole = [path for path, match in found.items() if match["shard"] is None]
    return whole or list(found)


def convert(
    folder: Path,
    progress: Progress | None,
    cancelled: Callable[[], bool] = lambda: False,
    *,
    confine: str = "auto",
) -> None:
    """Put safetensors in the place of a folder's pickled weights, by a process that is confined
    as workers are (``workers.confine``).

    Raises BadFiles, NoSpace or PullCancelled; the folder is of no use then.
    """
    names = pickled(path.name for path in folder.iterdir())
    sizes = {name: (folder / name).stat().st_size for name in names}
    check_room(folder, sum(sizes.values()))
    counter = Counter(progress, sizes)
    made = []
    for name in names:
        made.append(folder / _target(name))
        _convert(folder / name, made[-1], cancelled, confine)
        (folder / name).unlink()
        counter.add(name, sizes[name])
    if len(made) > 1:
        _write_index(folder, made)


def _target(name: str) -> str:
    return "model" + name.removeprefix("pytorch_model").removesuffix(".bin") + WEIGHTS


def _convert(source: Path, target: Path, cancelled: Callable[[], bool], confine: str) -> None:
    # A folder of its own, beside the target: the only one that it writes to.
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder).absolute() / target.name
        process = subprocess.Popen(
            [sys.executable, "-I", "-m", _READER, str(source.absolute()), str(made), confine],
            cwd=folder,
            env={},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            _await(process, cancelled)
        finally:
            process.kill()
            said, _ = process.communicate()
        if process.returncode != 0:
            why = said.strip() or "its reader died of it"
            raise BadFiles(f"{source.name} is not taken: {why[:200]}.")
        if not stat.S_ISREG(made.lstat().st_mode):
            raise BadFiles(f"{source.name} is not taken: its reader made no file of it.")
        os.replace(made, target)


def _await(process: "subprocess.Popen[str]", cancelled: Callable[[], bool]) -> None:
    end = time.monotonic() + _MOST_SECONDS
    while process.poll() is None:
        if cancelled():
            raise PullCancelled("The pull was cancelled.")
        if time.monotonic() > end:
            return
        time.sleep(_GLANCE_SECONDS)


def _write_index(folder: Path, shards: list[Path]) -> None:
    listed = {tensor: shard.name for shard in shards for tensor in read_header(shard)}
    total = sum(shard.stat().st_size for shard in shards)
    index = {"metadata": {"total_size": total}, "weight_map": listed}
    (folder / f"model{WEIGHTS}.index.json").write_text(json.dumps(index))
