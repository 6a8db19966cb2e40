"""Kills processes that change a store, each at another step, and looks at what is left.

A program of its own, since it forks: ``store_crashes.py FOLDER exchange|steps``.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from model_store import cleanup, places
from model_store.store import ModelStore
from tests.support.model_folders import llama

CHANGES = {"os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "open"}
MOMENTS = {"exchange": 36, "steps": 16}


def work(store: ModelStore, sources: list[Path]) -> None:
    """Replace a model by its other version, write its records, clean up, then remove and import
    one that shares its files."""
    old = store.get("mine").max_context
    new = next(each for each in sources if context_of(each) != old)
    store.replacing("mine").import_folder(new, "mine")
    store.touch("mine", loaded=True)
    store.set_care("mine", pinned=not store.care("mine").pinned, notes=str(old))
    store.gc(do=True, partials_kept=0)
    if "other" in store.names():
        store.remove("other")
    store.import_folder(sources[0], "other")


def context_of(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_bytes())["max_position_embeddings"])


def run(store: ModelStore, sources: list[Path], moment: int) -> int:
    """Do the work in a process that dies before its n-th change; return how it ended."""
    child = os.fork()
    if child == 0:
        seen = 0

        def audit(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if event not in CHANGES or (event == "open" and not arguments[2] & os.O_CREAT):
                return
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(audit)
        try:
            work(store, sources)
        finally:
            os._exit(min(seen, 255) if seen < moment else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def look(root: Path, sources: list[Path]) -> None:
    """Check that what is visible is whole, and that nothing is left after a clean-up."""
    store = ModelStore(root)
    assert "mine" in store.names(), "the model that was replaced is gone"
    for manifest in store.list():
        assert store.verify(manifest.name) == [], manifest.name
        files = store.path(manifest.name)
        assert context_of(files) == manifest.max_context
        assert context_of(files) in map(context_of, sources)
        assert store.care(manifest.name).notes in {"", *map(str, map(context_of, sources))}
    store.gc(do=True, partials_kept=0)
    store.gc(do=True, partials_kept=0)  # what shared files with what went
    assert not list(store.partial.iterdir()), list(store.partial.iterdir())
    assert not list(root.glob("*/*.new"))
    listed = {entry.sha256 for each in store.list() for entry in each.files}
    there = {path.name for path in store.blobs.folder.glob("??/*")}
    assert there == listed, (there, listed)


def main(folder: Path, how: str) -> None:
    os.getuid = lambda: 12345  # so that files are copied and shared
    os.fsync = lambda fd: None  # noqa: ARG005  a kill loses nothing that was written
    cleanup.DRAFT_SECONDS = -1
    if how == "steps":
        places._renameat2 = lambda: None  # type: ignore[assignment]
    sources = [llama(folder / "a"), llama(folder / "b", max_position_embeddings=256)]
    root = folder / "store"
    store = ModelStore(root)
    for name in ("mine", "other"):
        store.import_folder(sources[0], name)
    changes = run(store, sources, 10**9)
    assert changes > 30, changes
    look(root, sources)
    kills = 0
    moments = MOMENTS[how]
    for moment in sorted({1 + turn * changes // moments for turn in range(moments)}):
        kills += run(ModelStore(root), sources, moment) == -signal.SIGKILL
        look(root, sources)
    sys.stdout.write(f"{kills}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
