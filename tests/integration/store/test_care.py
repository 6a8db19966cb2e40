"""Looking after a store: clean-up, usage, pins and notes, damage and its repair, export."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from model_store.cleanup import Removal
from model_store.errors import BadFiles, DownloadError, UnknownModel
from model_store.export import export
from model_store.locks import LOCK, lock
from model_store.manifest import Manifest
from model_store.repair import repair
from model_store.store import ModelStore
from model_store.verification import Difference, differences
from tests.support.lora_files import write_text_lora
from tests.support.model_folders import llama, write


@pytest.fixture
def shared(store: ModelStore, source: Path, monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    """Provide a store with two models that share all their files, and with none linked from
    outside."""
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    for name in ("one", "two"):
        store.import_folder(source, name)
    return store


def named(removals: list[Removal]) -> set[tuple[str, str]]:
    return {(each.kind, each.name) for each in removals}


def flip(path: Path) -> None:
    """Damage a file as a disk does: its size and its times stay."""
    found = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


# ---- clean-up ------------------------------------------------------------------------------------


def test_gc_says_what_it_will_remove_and_then_removes_it(shared: ModelStore) -> None:
    for name in ("draft-1", "removed-1", "pull-org--name"):
        folder = shared.partial / name
        write(folder / "files/part", "x" * 1000)
        os.utime(folder / "files/part", (1, 1))
        os.utime(folder / "files", (1, 1))
        os.utime(folder, (1, 1))
    sha256 = "ab" * 32
    write(shared.partial / "download", "bytes")
    shared.blobs.take(shared.partial / "download", sha256, "cd" * 20)
    expected = {
        ("draft", "draft-1"), ("draft", "removed-1"), ("partial", "pull-org--name"),
    }  # fmt: skip
    assert named(shared.gc()) == expected  # the blob may belong to a download under way
    found = shared.gc(partials_kept=0)
    assert named(found) == {*expected, ("blob", sha256)}
    assert {each.kind: each.bytes for each in found} == {"draft": 1000, "partial": 1000, "blob": 5}
    assert all(each.why for each in found)
    handle = lock(shared.partial / "pull-org--name")
    assert handle is not None
    assert named(shared.gc(partials_kept=0)) == {*expected, ("blob", sha256)} - {
        ("partial", "pull-org--name")
    }
    os.close(handle)
    assert shared.gc(do=True, partials_kept=0) == found
    assert shared.gc(partials_kept=0) == []
    assert not list(shared.partial.iterdir())
    assert not [path for path in shared.blobs.folder.glob("git/*/*") if path.is_symlink()]
    assert shared.names() == ["one", "two"]
    assert shared.verify("one") == []


def test_gc_takes_no_lock_of_a_network_file_system_for_a_draft(shared: ModelStore) -> None:
    locked = next(shared.blobs.folder.glob("[0-9a-f][0-9a-f]")) / LOCK
    locked.touch()
    os.utime(locked, (1, 1))
    assert shared.gc() == []


def test_gc_removes_nothing_that_became_in_use_after_it_was_planned(shared: ModelStore) -> None:
    used: list[str] = []
    found = shared.gc(max_bytes=0, in_use=used.__contains__)
    assert named(found) == {("model", "one"), ("model", "two")}
    used.append("one")
    shared.set_care("two", pinned=True)
    assert shared.gc(do=True, max_bytes=0, in_use=used.__contains__) == []
    used.clear()
    assert named(shared.gc(do=True, max_bytes=0)) == {("model", "one")}
    assert shared.names() == ["two"]


def test_gc_under_a_budget_removes_the_least_recently_used(
    shared: ModelStore, tmp_path: Path
) -> None:
    shared.import_folder(llama(tmp_path / "other", max_position_embeddings=64), "other")
    shared.touch("one")
    total = shared.get("one").total_bytes
    assert shared.gc(max_bytes=2 * total) == []
    found = shared.gc(max_bytes=total)
    assert [each.name for each in found] == ["two", "other"]
    # It shares all with "one", so that nothing comes free.
    assert found[0].bytes == 0
    assert found[1].bytes > 0


def test_gc_counts_no_file_that_is_linked_from_outside(store: ModelStore, source: Path) -> None:
    store.import_folder(source, "linked")
    assert store.gc(max_bytes=0) == []


# ---- usage, pins, notes --------------------------------------------------------------------------


def test_usage_pins_and_notes_are_kept_beside_the_manifest(shared: ModelStore) -> None:
    before = shared.get("one")
    assert shared.usage("one").last_used_at is None
    shared.touch("one", loaded=True)
    shared.touch("one")
    assert shared.usage("one").loads == 1
    assert shared.usage("one").last_used_at is not None
    shared.set_care("one", pinned=True)
    shared.set_care("one", notes="of the lab\n")
    assert (shared.care("one").pinned, shared.care("one").notes) == (True, "of the lab\n")
    shared.set_care("one", pinned=False, notes="")
    assert (shared.care("one").pinned, shared.care("one").notes) == (False, "")
    assert shared.read("one") == before
    assert shared.verify("one") == []
    write(shared.path("one").parent / "usage.json", "{")
    assert shared.usage("one").loads == 0
    with pytest.raises(BadFiles, match="4096"):
        shared.set_care("one", notes="x" * 5000)
    shared.touch("nothing")
    for call in (shared.usage, shared.care, shared.set_care):
        with pytest.raises(UnknownModel):
            call("nothing")


# ---- damage --------------------------------------------------------------------------------------


def test_verify_of_all_reads_a_shared_file_once_and_says_who_shares_it(shared: ModelStore) -> None:
    flip(shared.path("one") / "model.safetensors")
    write(shared.path("two") / "new.json", "{}")
    (shared.path("two") / "config.json").unlink()
    found = differences(shared, ["one", "two"])
    assert found["one"] == [Difference("model.safetensors", "content", ("two",))]
    assert found["two"] == [
        Difference("config.json", "missing"),
        Difference("model.safetensors", "content", ("one",)),
        Difference("new.json", "new"),
    ]


def test_repair_takes_what_another_model_has(shared: ModelStore) -> None:
    path = shared.path("one") / "config.json"
    path.unlink()
    write(path, "{}")
    write(shared.path("one") / "new.json", "{}")
    found = repair(shared, "one", no_fetch)
    assert [each.path for each in found] == ["config.json", "new.json"]
    assert shared.verify("one") == []
    assert path.samefile(shared.path("two") / "config.json")


def test_repair_of_a_file_that_two_models_share_repairs_both(
    shared: ModelStore, source: Path
) -> None:
    """Bytes rotted in place, so that no time tells of it; the hub has the file still."""
    as_from_the_hub(shared, "one")
    for name in ("config.json", "model.safetensors"):
        flip(shared.path("one") / name)
    asked: list[Sequence[str]] = []

    def fetch(into: ModelStore, manifest: Manifest, paths: Sequence[str]) -> Manifest:
        """Fetch only the files that no blob has, as a pull does."""
        asked.append(paths)
        with into.draft() as folder:
            for entry in manifest.files:
                if into.blobs.find(entry.sha256) is None:
                    fetched.append(entry.path)
                    part = into.partial / "part"
                    part.write_bytes((source / entry.path).read_bytes())
                    into.blobs.take(part, entry.sha256)
                into.blobs.link(entry.sha256, folder / "files" / entry.path)
            return into.finish(folder, manifest.name, source=manifest.source)

    fetched: list[str] = []
    found = repair(shared, "one", fetch)
    assert found == [
        Difference("config.json", "content", ("two",)),
        Difference("model.safetensors", "content", ("two",)),
    ]
    assert sorted(fetched) == ["config.json", "model.safetensors"]
    assert asked == [["config.json", "model.safetensors", "tokenizer_config.json"]]
    for name in ("one", "two"):
        assert shared.verify(name) == []
    assert shared.gc(partials_kept=0) == []


def test_repair_fetches_only_the_damaged_file_of_a_model_that_is_linked_from_outside(
    store: ModelStore, source: Path
) -> None:
    store.import_folder(source, "one")
    as_from_the_hub(store, "one")
    (store.path("one") / "config.json").unlink()
    missing: list[str] = []

    def fetch(into: ModelStore, manifest: Manifest, paths: Sequence[str]) -> Manifest:
        missing.extend(each.path for each in manifest.files if not into.blobs.find(each.sha256))
        assert len(paths) == 3
        return manifest

    repair(store, "one", fetch)
    assert missing == ["config.json"]


def test_repair_says_what_it_cannot_have(shared: ModelStore) -> None:
    flip(shared.path("one") / "config.json")
    with pytest.raises(BadFiles, match="did not come from the hub"):
        repair(shared, "one", no_fetch)
    assert differences(shared, ["two"])["two"] == [Difference("config.json", "content", ("one",))]


def test_repair_that_fails_leaves_all_files_as_they_were(shared: ModelStore) -> None:
    as_from_the_hub(shared, "one")
    for name in ("config.json", "model.safetensors"):
        flip(shared.path("one") / name)
    (shared.path("one") / "tokenizer_config.json").unlink()
    write(shared.path("one") / "new.json", "{}")

    def contents() -> dict[Path, bytes]:
        paths = (path for name in ("one", "two") for path in shared.path(name).rglob("*"))
        return {path: path.read_bytes() for path in paths}

    def fail(into: ModelStore, manifest: Manifest, paths: Sequence[str]) -> Manifest:
        raise DownloadError(f"The hub is away: {into.root}, {manifest.name}, {paths}")

    before = contents()
    with pytest.raises(DownloadError, match="away"):
        repair(shared, "one", fail)
    assert contents() == before
    assert not list(shared.partial.iterdir())
    assert len(differences(shared, ["one"])["one"]) == 4


def no_fetch(store: ModelStore, manifest: Manifest, paths: Sequence[str]) -> Manifest:
    raise AssertionError((store, manifest, paths))


def as_from_the_hub(store: ModelStore, name: str) -> None:
    path = store.path(name).parent / "manifest.json"
    write(path, path.read_text().replace('"import"', '"hub:org/one"'))
    store.partial.rename(store.partial.with_name("elsewhere"))  # so that the list is read again
    store.partial.parent.joinpath("elsewhere").rename(store.partial.parent / ".partial")
    assert store.get(name).source == "hub:org/one"


# ---- a store of version 0.1 ----------------------------------------------------------------------


def test_store_without_blobs_is_taken_over_as_it_is(
    shared: ModelStore, source: Path, tmp_path: Path
) -> None:
    """Nothing is hashed or moved at the start; a file becomes a blob when another model has it."""
    shared.remove("two")
    for blob in shared.blobs.folder.glob("??/*"):
        blob.unlink()
    old = ModelStore(tmp_path / "store")
    assert old.verify("one") == []
    assert not list(old.blobs.folder.glob("??/*"))
    ModelStore(tmp_path / "store").import_folder(source, "two")
    names = [entry.path for entry in old.get("one").files]
    assert all((old.path("one") / name).samefile(old.path("two") / name) for name in names)
    assert old.verify("one") == []
    old.remove("one")
    old.remove("two")
    assert not list(old.blobs.folder.glob("??/*"))


# ---- export --------------------------------------------------------------------------------------


@pytest.mark.parametrize("links", [False, True])
def test_export_makes_a_folder_that_libraries_load(
    shared: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    from transformers import AutoConfig

    monkeypatch.undo()
    target = tmp_path / "out" / "model"
    if links:
        target.mkdir(parents=True)
    left = tmp_path / "out" / ".model.bitinglip-export"
    write(left / "config.json", "of an export that was killed")
    assert export(shared, "one", target, links=links) == shared.get("one").total_bytes
    assert AutoConfig.from_pretrained(target).model_type == "llama"
    weights = "model.safetensors"
    assert (target / weights).samefile(shared.path("one") / weights) is links
    assert list(target.parent.iterdir()) == [target]
    shared.import_folder(target, "back")
    assert shared.verify("back") == []


def test_export_refuses_a_place_that_is_taken(shared: ModelStore, tmp_path: Path) -> None:
    full = tmp_path / "full"
    write(full / "thesis.txt", "mine")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    for target, why in (
        (full, "not empty"),
        (full / "thesis.txt", "a file"),
        (link, "a file"),
        (shared.path("one").parents[1] / "new", "in the store"),
        (full / "thesis.txt" / "below", "cannot be written"),
    ):
        with pytest.raises(BadFiles, match=why) as caught:
            export(shared, "one", target)
        assert str(tmp_path) not in caught.value.message
    assert (full / "thesis.txt").read_text() == "mine"


def test_adapter_stays_one_when_it_is_verified_and_its_base_stays_for_it(
    store: ModelStore, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check the written manifest: in memory it is joined with its base's."""
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    store.import_folder(source, "base")
    store.import_folder(write_text_lora(source, tmp_path / "lora", named="base"), "lora")
    own = store.read("lora")
    assert own.kind == "adapter"
    (store.path("lora") / own.files[0].path).touch()
    assert store.verify("lora") == []
    found = store.read("lora")
    assert (found.kind, found.parameters) == (own.kind, own.parameters)
    assert found.files != own.files
    assert [each.name for each in store.gc(max_bytes=0)] == ["lora"]
