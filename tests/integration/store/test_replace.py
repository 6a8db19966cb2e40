"""A model that is replaced: at once, with its records, and never while its files are opened."""

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from model_store import places
from model_store.errors import NameTaken, UnknownModel
from model_store.locks import held
from model_store.store import ModelStore
from tests.support.model_folders import llama, write
from tests.support.wait import eventually

ROOT = Path(__file__).parents[3]


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    return llama(tmp_path / "newer", max_position_embeddings=256)


def in_steps(patch: pytest.MonkeyPatch) -> None:
    """Let the file system be unable to exchange two folders."""
    patch.setattr(places, "_renameat2", lambda: None)


@pytest.mark.parametrize("at_once", [True, False])
def test_replaced_model_keeps_its_records_and_what_has_it_open_keeps_the_old_one(
    store: ModelStore,
    source: Path,
    newer: Path,
    monkeypatch: pytest.MonkeyPatch,
    at_once: bool,
) -> None:
    if not at_once:
        in_steps(monkeypatch)
    old = store.import_folder(source, "org/mine")
    store.touch("org/mine", loaded=True)
    store.set_care("org/mine", pinned=True, notes="for the lab")
    with (store.path("org/mine") / "config.json").open() as opened:
        made = store.replacing("org/mine").import_folder(newer, "org/mine")
        assert '"max_position_embeddings": 128' in opened.read()
    assert (old.max_context, made.max_context) == (128, 256)
    assert store.get("org/mine") == made
    assert store.verify("org/mine") == []
    assert store.usage("org/mine").loads == 1
    assert store.care("org/mine").pinned
    assert store.care("org/mine").notes == "for the lab"
    assert not list(store.partial.iterdir())


def test_replaced_model_is_the_one_that_was_named_and_no_other(
    store: ModelStore, source: Path
) -> None:
    with pytest.raises(UnknownModel):
        store.replacing("mine")
    store.import_folder(source, "mine")
    for other in ("Mine", "MINE"):
        with pytest.raises(NameTaken):
            store.replacing("mine").import_folder(source, other)
    with pytest.raises(NameTaken):
        store.import_folder(source, "mine")


def test_replacement_waits_while_the_model_is_being_loaded(
    store: ModelStore, source: Path, newer: Path
) -> None:
    store.import_folder(source, "mine")
    replaced = threading.Event()

    def replace() -> None:
        store.replacing("mine").import_folder(newer, "mine")
        replaced.set()

    async def load() -> int | None:
        async with store.loading(["mine"]), store.loading(["mine"]):  # two replicas at once
            thread.start()
            eventually(lambda: any(store.partial.glob("draft-*/manifest.json")))
            return store.read("mine").max_context

    thread = threading.Thread(target=replace)
    assert asyncio.run(load()) == 128
    thread.join(60)
    assert replaced.is_set()
    assert store.read("mine").max_context == 256


def test_replacement_that_a_crash_interrupted_is_repaired_at_the_next_start(
    store: ModelStore, source: Path, tmp_path: Path
) -> None:
    store.import_folder(source, "mine")
    root, aside = tmp_path / "store", store.partial / "replaced-mine"
    (root / "mine").rename(aside)
    with held(aside, shared=False):  # its replacement still runs
        assert ModelStore(root).names() == []
        ModelStore(root).gc(do=True, partials_kept=0)
    assert ModelStore(root).names() == ["mine"]
    write(aside / "files/config.json", "{}")
    assert ModelStore(root).verify("mine") == []
    assert not aside.exists()


@pytest.mark.parametrize(("how", "most"), [("exchange", 36), ("steps", 16)])
def test_crash_at_any_moment_leaves_whole_models_and_nothing_that_gc_does_not_remove(
    tmp_path: Path, how: str, most: int
) -> None:
    """A process imports, replaces and removes models, and is killed at each of its steps."""
    command = [sys.executable, "-m", "tests.support.store_crashes", str(tmp_path), how]
    ran = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > most - 4


SHARING = """
import os, sys
from pathlib import Path
from model_store.store import ModelStore
os.getuid = lambda: 12345  # so that files are copied and shared
os.fsync = lambda _: None
root, name, sources = Path(sys.argv[1]), sys.argv[2], [Path(each) for each in sys.argv[3:]]
for turn in range(6):
    store = ModelStore(root)
    store.import_folder(sources[turn % 2], name)
    store.gc(do=True, partials_kept=0)
    store.replacing(name).import_folder(sources[(turn + 1) % 2], name)
    assert store.verify(name) == [], turn
    if turn < 5:
        store.remove(name)
"""


def test_store_is_whole_while_several_processes_change_it(
    store: ModelStore, source: Path, newer: Path
) -> None:
    """All their models share files; each cleans up what the others may need."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SHARING, str(store.root), name, str(source), str(newer)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "org/two", "three")
    ]
    said = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], said
    assert store.names() == ["one", "org/two", "three"]
    assert all(store.verify(name) == [] for name in store.names())
    store.gc(do=True, partials_kept=0)
    listed = {entry.sha256 for each in store.list() for entry in each.files}
    assert {path.name for path in store.blobs.folder.glob("??/*")} <= listed
    assert not list(store.partial.iterdir())
