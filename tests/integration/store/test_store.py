"""The store on a real disk: taking in, listing, removing and verifying, also by two processes."""

import asyncio
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from model_store.demo import DEMO_MODELS, make_demo_models
from model_store.errors import BadFiles, BadName, ChangedFiles, NameTaken, UnknownModel
from model_store.hashes import sha256_of
from model_store.locks import lock
from model_store.progress import Counter
from model_store.store import ModelStore
from tests.support.model_folders import write


def test_import_links_what_it_may(store: ModelStore, source: Path) -> None:
    write(source / "modeling.py", "raise SystemExit")
    write(source / "pytorch_model.bin", "pickle")
    made = store.import_folder(source, "org/mine")
    assert store.get("org/mine") == store.list()[0] == made
    assert store.names() == ["org/mine"]
    taken = store.path("org/mine")
    assert {path.name for path in taken.iterdir()} == {
        "config.json", "tokenizer_config.json", "model.safetensors",
    }  # fmt: skip
    assert (taken / "model.safetensors").samefile(source / "model.safetensors")
    assert store.verify("org/mine") == []


def test_import_copies_where_links_cannot_be(
    store: ModelStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    store.import_folder(source, "mine")
    taken = store.path("mine") / "model.safetensors"
    assert not taken.samefile(source / "model.safetensors")
    assert taken.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "loop", "pipe"])
def test_import_refuses_what_is_no_file_of_the_folder(
    store: ModelStore, source: Path, tmp_path: Path, kind: str
) -> None:
    extra = source / "extra.json"
    write(tmp_path / "secret/secret.json", "{}")
    if kind == "link":
        extra.symlink_to(tmp_path / "secret/secret.json")
    elif kind == "dangling":
        extra.symlink_to("nothing")
    elif kind == "loop":
        extra.symlink_to(extra.name)
    elif kind == "folder":
        (source / "extra").symlink_to(tmp_path / "secret")
    else:
        os.mkfifo(extra)
    with pytest.raises(BadFiles) as caught:
        store.import_folder(source, "mine")
    assert str(tmp_path) not in caught.value.message
    assert not list(store.partial.iterdir())


def test_import_of_a_snapshot_of_the_hub_cache(
    store: ModelStore, source: Path, tmp_path: Path
) -> None:
    repo = tmp_path / "hub/models--org--name"
    snapshot = repo / "snapshots" / ("5" * 40)
    (repo / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(source.iterdir())):
        path.rename(repo / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    store.import_folder(snapshot, "mine")
    assert not any(path.is_symlink() for path in store.path("mine").iterdir())


def test_names_are_checked(store: ModelStore, source: Path) -> None:
    store.import_folder(source, "Mine")
    for taken in ("Mine", "mine"):
        with pytest.raises(NameTaken):
            store.import_folder(source, taken)
    for bad in ("../x", "", "a//b", ".partial"):
        with pytest.raises(BadName):
            store.import_folder(source, bad)
        with pytest.raises(UnknownModel):
            store.remove(bad)
    with pytest.raises(BadFiles):
        store.import_folder(source / "nothing", "x")


def test_remove_deletes_the_model_s_files(store: ModelStore, source: Path) -> None:
    store.import_folder(source, "mine")
    store.remove("mine")
    assert store.names() == []
    assert (source / "model.safetensors").exists()
    for call in (store.remove, store.get, store.path, store.verify):
        with pytest.raises(UnknownModel):
            call("mine")


def test_verify_finds_each_change(store: ModelStore, source: Path) -> None:
    store.import_folder(source, "mine")
    folder = store.path("mine")
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").unlink()
    write(folder / "modeling.py", "")
    assert store.verify("mine") == ["config.json", "model.safetensors", "modeling.py"]


def test_verify_names_what_cannot_be_read(
    store: ModelStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.import_folder(source, "mine")

    def fail(path: Path, name: str, counter: Counter) -> str:
        if path.name == "config.json":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return sha256_of(path, name, counter)

    monkeypatch.setattr("model_store.verification.sha256_of", fail)
    assert store.verify("mine") == ["config.json"]


def test_list_leaves_out_what_is_incomplete_but_can_be_removed(
    store: ModelStore, source: Path, tmp_path: Path
) -> None:
    store.import_folder(source, "mine")
    folder = tmp_path / "store/mine"
    (tmp_path / "store/half/files").mkdir(parents=True)
    write(tmp_path / "store/stray.txt", "")
    assert store.names() == ["mine"]
    folder.rename(tmp_path / "store/renamed")
    assert store.names() == []
    (tmp_path / "store/renamed").rename(folder)
    write(folder / "manifest.json", "{")
    assert ModelStore(tmp_path / "store").names() == []
    store.remove("mine")
    store.remove("half")
    store.import_folder(source, "mine")


def test_sweep_removes_what_a_killed_import_left(store: ModelStore, source: Path) -> None:
    old = store.partial / "draft-old"
    young = store.partial / "draft-young"
    removed = store.partial / "removed-1"
    for folder in (old, young, removed):
        folder.mkdir()
    os.utime(old, (1, 1))
    with held(store.partial / "removed-2") as busy:
        store.import_folder(source, "mine")
        assert busy.exists()
    assert not old.exists()
    assert not removed.exists()
    assert young.exists()


def test_clean_up_keeps_what_a_pull_can_resume_from_for_two_weeks(store: ModelStore) -> None:
    old, resumed, running = (store.partial / f"pull-{name}" for name in ("old", "resumed", "runs"))
    for folder in (old, resumed):
        folder.mkdir()
        (folder / "part").write_bytes(b"half")
        os.utime(folder / "part", (1, 1))
        os.utime(folder, (1, 1))
    os.utime(resumed / "part")
    with held(running):
        os.utime(running, (1, 1))
        store.gc(do=True)
        assert {path.name for path in store.partial.iterdir()} == {resumed.name, running.name}


@contextmanager
def held(folder: Path) -> Iterator[Path]:
    """Yield a folder that another process is just removing."""
    folder.mkdir()
    handle = lock(folder)
    assert handle is not None
    yield folder
    os.close(handle)


def check(store: ModelStore, name: str = "mine") -> None:
    asyncio.run(store.check(name))


def appended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b" ")


def one_bit(path: Path) -> None:
    with path.open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))


@pytest.mark.parametrize("change", [appended, one_bit, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_check_finds_a_file_that_changed_where_it_came_from(
    store: ModelStore, source: Path, change: Callable[[Path], None], name: str
) -> None:
    store.import_folder(source, "mine")
    check(store)
    # A link to a file that is unlinked where it came from stays whole.
    change((store.path("mine") if change is Path.unlink else source) / name)
    with pytest.raises(ChangedFiles, match=f"{name} changed.*models verify mine") as caught:
        check(store)
    assert str(source.parent) not in caught.value.message
    assert store.verify("mine") == [name]
    with pytest.raises(ChangedFiles):
        check(store)


def test_check_passes_what_verify_has_found_whole(store: ModelStore, source: Path) -> None:
    store.import_folder(source, "mine")
    for path in store.path("mine").iterdir():
        path.touch()
    with pytest.raises(ChangedFiles, match="and 2 more"):
        check(store)
    write(store.path("mine") / "new.json", "{}")
    assert store.verify("mine") == ["new.json"]
    with pytest.raises(ChangedFiles):
        check(store)
    (store.path("mine") / "new.json").unlink()
    # By another process, as from the command line while a server runs.
    assert ModelStore(store.path("mine").parents[1]).verify("mine") == []
    check(store)


def test_check_passes_copies_that_keep_whole_seconds(store: ModelStore, source: Path) -> None:
    store.import_folder(source, "mine")
    for path in store.path("mine").iterdir():
        os.utime(path, (path.stat().st_mtime_ns // 10**9,) * 2)
    check(store)


def test_check_of_a_manifest_of_old_knows_sizes_only(store: ModelStore, source: Path) -> None:
    store.import_folder(source, "mine")
    folder = store.path("mine").parent
    manifest = json.loads((folder / "manifest.json").read_bytes())
    for entry in manifest["files"]:
        del entry["mtime_ns"]
    write(folder / "manifest.json", json.dumps(manifest))
    one_bit(source / "config.json")
    check(store)
    appended(source / "config.json")
    with pytest.raises(ChangedFiles):
        check(store)


DEMO = (
    "import sys; from pathlib import Path; from model_store.store import ModelStore\n"
    "from model_store.demo import make_demo_models\n"
    "made = make_demo_models(ModelStore(Path(sys.argv[1])))\n"
    "print([(m.name, [(f.path, f.sha256) for f in m.files]) for m in made])\n"
    "assert not {'torch', 'transformers', 'diffusers', 'fastapi'} & set(sys.modules)"
)


def test_demo_models_are_the_same_each_time(tmp_path: Path) -> None:
    told = set()
    for seed in ("1", "2"):
        command = [sys.executable, "-c", DEMO, str(tmp_path / seed)]
        environ = {**os.environ, "PYTHONHASHSEED": seed}
        told.add(subprocess.run(command, env=environ, capture_output=True, check=True).stdout)
    assert len(told) == 1
    assert ModelStore(tmp_path / "1").names() == sorted(DEMO_MODELS)


def test_demo_models_are_made_once(store: ModelStore) -> None:
    first = make_demo_models(store)
    assert [made.name for made in first] == list(DEMO_MODELS)
    assert make_demo_models(store) == []
    assert all(store.verify(name) == [] for name in DEMO_MODELS)


def test_demo_text_loads_and_generates(store: ModelStore) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make_demo_models(store, ["demo-text"])
    folder = store.path("demo-text")
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "Hello"}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    made = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert made.shape[1] > prompt["input_ids"].shape[1]
    assert (
        tokenizer.decode(tokenizer("Hello there, reader.")["input_ids"]) == "Hello there, reader."
    )


def test_models_with_equal_files_share_their_bytes(
    store: ModelStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)  # so that nothing is linked from outside
    for name in ("one", "org/two"):
        store.import_folder(source, name)
    one, two = (store.path(name) / "model.safetensors" for name in ("one", "org/two"))
    assert one.samefile(two)
    blobs = [path for path in store.blobs.folder.glob("*/*") if path.stat().st_nlink == 3]
    assert len(blobs) == 3
    for name in ("one", "org/two"):
        check(store, name)
        assert store.verify(name) == []
        store.remove(name)
    assert not list(store.blobs.folder.glob("*/*"))


def test_model_that_is_linked_from_outside_lends_its_files_to_no_other(
    store: ModelStore, source: Path
) -> None:
    store.import_folder(source, "linked")
    assert not list(store.blobs.folder.glob("*/*"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getuid", lambda: 12345)
        store.import_folder(source, "copied")
    one_bit(source / "model.safetensors")
    assert store.verify("linked") == ["model.safetensors"]
    assert store.verify("copied") == []
