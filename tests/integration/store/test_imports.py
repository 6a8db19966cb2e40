"""Imports from the hub's own cache: its repositories, their snapshots, links and traps."""

from pathlib import Path

import pytest

from model_store.errors import BadFiles
from model_store.store import ModelStore
from tests.support.model_folders import llama, write

COMMITS = ("5" * 40, "6" * 40)


def cached(
    cache: Path, commits: tuple[str, ...] = COMMITS[:1], *, folder: str = "models--org--name"
) -> Path:
    """Return a repository as the hub's client keeps it: blobs, and snapshots of links to them."""
    repository = cache / folder
    (repository / "blobs").mkdir(parents=True)
    for context, commit in enumerate(commits, 100):
        source = llama(cache / "made", max_position_embeddings=context)
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for path in list(source.iterdir()):
            blob = repository / "blobs" / f"{commit[0]}{path.name}"
            path.rename(blob)
            (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
        source.rmdir()
    return repository


def test_import_of_a_cached_repository_takes_its_main_snapshot(
    store: ModelStore, tmp_path: Path
) -> None:
    repository = cached(tmp_path / "hub", COMMITS)
    with pytest.raises(BadFiles, match="several snapshots"):
        store.import_folder(repository, "mine")
    write(repository / "refs/main", COMMITS[1])
    made = store.import_folder(repository, "mine")
    assert (made.source, made.revision, made.max_context) == ("hub:org/name", COMMITS[1], 101)
    other = store.import_folder(repository / "snapshots" / COMMITS[0], "older")
    assert (other.source, other.revision, other.max_context) == ("hub:org/name", COMMITS[0], 100)
    weights = store.path("mine") / "model.safetensors"
    assert weights.samefile(repository / "blobs/6model.safetensors")
    assert not weights.is_symlink()


@pytest.mark.parametrize("main", ["../../../..", "/etc", "gone", "\udcff", "", "a/b", "7" * 40])
def test_import_trusts_no_branch_of_a_cache(store: ModelStore, tmp_path: Path, main: str) -> None:
    repository = cached(tmp_path / "hub")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_bytes(main.encode(errors="surrogateescape"))
    assert store.import_folder(repository, "mine").revision == COMMITS[0]


def test_import_of_a_whole_cache_says_what_is_in_it(store: ModelStore, tmp_path: Path) -> None:
    for name in ("a", "b"):
        cached(tmp_path / "hub", folder=f"models--{name}")
    with pytest.raises(BadFiles, match="name one of models--a, models--b"):
        store.import_folder(tmp_path / "hub", "mine")
    (tmp_path / "hub/models--none/snapshots").mkdir(parents=True)
    with pytest.raises(BadFiles, match="no snapshot"):
        store.import_folder(tmp_path / "hub/models--none", "mine")


def test_import_takes_blobs_that_repositories_of_a_cache_share(
    store: ModelStore, tmp_path: Path
) -> None:
    repository = cached(tmp_path / "hub")
    shared = tmp_path / "hub/blobs/weights"
    shared.parent.mkdir()
    blob = repository / "blobs/5model.safetensors"
    blob.rename(shared)
    blob.symlink_to(shared)
    store.import_folder(repository, "mine")
    assert (store.path("mine") / "model.safetensors").samefile(shared)


@pytest.mark.parametrize("folder", ["models--org--name", "elsewhere", "models--..--x"])
def test_import_of_a_snapshot_follows_no_link_out_of_its_cache(
    store: ModelStore, tmp_path: Path, folder: str
) -> None:
    """A folder that is only named as a cache is, too: what its links reach is bounded."""
    repository = cached(tmp_path / "hub", folder=folder)
    snapshot = repository / "snapshots" / COMMITS[0]
    write(tmp_path / "secret/config.json", "{}")
    write(tmp_path / "hub/models--other/blobs/config.json", "{}")
    for target in ("secret/config.json", "hub/models--other/blobs/config.json"):
        (snapshot / "config.json").unlink()
        (snapshot / "config.json").symlink_to(tmp_path / target)
        with pytest.raises(BadFiles, match="leaves the folder"):
            store.import_folder(snapshot, "mine")
    (repository / "blobs").rename(repository / "moved")
    (repository / "blobs").symlink_to(tmp_path / "secret")
    with pytest.raises(BadFiles, match=r"leaves the folder|link to nothing"):
        store.import_folder(snapshot, "mine")


def test_import_of_a_folder_named_as_a_cache_claims_no_repository(
    store: ModelStore, tmp_path: Path
) -> None:
    for number, folder in enumerate(("models--..--x", "models--a--b--c", "models--", "other")):
        made = store.import_folder(
            cached(tmp_path / str(number), folder=folder) / "snapshots" / COMMITS[0], f"m{number}"
        )
        assert (made.source, made.revision) == ("import", None)
