"""Pickled weights: refused, or converted where the operator allows it, by a process apart."""

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from transformers import BarkModel, VitsModel

from model_store.errors import BadFiles, PullCancelled
from model_store.hub.pull import HubOptions, PullRequest, pull
from model_store.pickles import convert, pickled
from model_store.store import ModelStore
from tests.support.cli_process import run
from tests.support.hub import REPO, fake_hub
from tests.support.models.bark import make as make_bark
from tests.support.models.voices import make_vits
from tests.support.wait import eventually
from workers import unpickle
from workers.confinement import Kernel


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


def only_pickles(folder: Path, *, shards: int = 1) -> Path:
    """Replace a model's weights by pickles, as old repositories have them."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    for n in range(shards):
        part = {name: tensors[name] for name in names[n::shards]}
        suffix = "" if shards == 1 else f"-{n + 1:05}-of-{shards:05}"
        torch.save(part, folder / f"pytorch_model{suffix}.bin")
    return folder


@pytest.mark.parametrize("shards", [1, 2])
def test_conversion_of_pickles_gives_the_same_model(
    tmp_path: Path, store: ModelStore, shards: int
) -> None:
    source = make_vits(tmp_path / "m")
    before = VitsModel.from_pretrained(source).state_dict()
    only_pickles(source, shards=shards)
    with pytest.raises(BadFiles, match="allow_pickles"):
        store.import_folder(source, "m")
    manifest = store.import_folder(source, "m", allow_pickles=True)
    assert not [entry.path for entry in manifest.files if entry.path.endswith(".bin")]
    assert manifest.parameters == sum(tensor.numel() for tensor in before.values())
    after = VitsModel.from_pretrained(store.path("m"), use_safetensors=True).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert sorted(source.glob("*.bin")), "the source is left as it was"
    assert not store.verify("m")


def test_pull_of_a_bark_takes_its_pickles(tmp_path: Path, store: ModelStore) -> None:
    """Beside the weights lie those of another library, which no engine needs."""
    source = make_bark(tmp_path / "bark")
    before = BarkModel.from_pretrained(source).state_dict()
    only_pickles(source)
    (source / "text_2.pt").write_bytes(b"not ours")
    with fake_hub(source) as hub:
        options = HubOptions(endpoint=hub.url)
        with pytest.raises(BadFiles, match="allow_pickles"):
            pull(store, PullRequest(repo=REPO, hub=options))
        manifest = pull(store, PullRequest(repo=REPO, hub=options, allow_pickles=True))
        assert not any("text_2.pt" in path for _, path in hub.requests)
    assert manifest.kind == "speech"
    assert "v2/en_speaker_0" in manifest.voices
    after = BarkModel.from_pretrained(store.path(REPO), use_safetensors=True).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_pull_prefers_safetensors_even_where_pickles_are_allowed(
    tmp_path: Path, store: ModelStore
) -> None:
    source = make_vits(tmp_path / "m")
    (source / "pytorch_model.bin").write_bytes(b"not looked at")
    store.import_folder(source, "m", allow_pickles=True)


class _Shell:
    def __reduce__(self) -> Any:
        return os.system, (f"touch {Path(sys.argv[0]).parent / 'ran'}",)


def _code(path: Path) -> None:
    torch.save({"weight": torch.zeros(2), "extra": _Shell()}, path)


def _old_format(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weight": _Shell()}))


def _list(path: Path) -> None:
    torch.save([torch.zeros(2)], path)


def _nested(path: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(2)}}, path)


def _sparse(path: Path) -> None:
    torch.save({"weight": torch.eye(3).to_sparse()}, path)


def _cut(path: Path) -> None:
    torch.save({"weight": torch.zeros(9999)}, path)
    path.write_bytes(path.read_bytes()[:-500])


def _text(path: Path) -> None:
    path.write_text("<html>")


def _huge(path: Path) -> None:
    """Return one number that stands for a table of terabytes."""
    torch.save({"weight": torch.zeros(1).expand(1 << 20, 1 << 20)}, path)


@pytest.mark.parametrize("spoil", [_old_format, _list, _nested, _sparse, _cut, _text])
def test_pickle_that_is_not_just_tensors_is_not_read(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(tmp_path / "pytorch_model.bin")
    with pytest.raises(unpickle._Unfit) as refused:
        unpickle._convert(tmp_path / "pytorch_model.bin", tmp_path / "model.safetensors")
    assert str(tmp_path) not in str(refused.value)
    assert not (Path(sys.argv[0]).parent / "ran").exists()
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("spoil", [_code, _huge])
def test_pickle_that_is_not_just_tensors_is_refused_and_runs_nothing(
    tmp_path: Path, store: ModelStore, spoil: Callable[[Path], None]
) -> None:
    source = only_pickles(make_vits(tmp_path / "m"))
    spoil(source / "pytorch_model.bin")
    with pytest.raises(BadFiles, match="is not taken") as refused:
        store.import_folder(source, "m", allow_pickles=True)
    assert str(tmp_path) not in refused.value.message
    assert not (Path(sys.argv[0]).parent / "ran").exists()
    assert store.names() == []
    assert not list(store.partial.iterdir())


def test_conversion_keeps_one_memory_under_two_names(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    torch.save({"a": shared, "b": shared, "c": shared.T}, tmp_path / "pytorch_model.bin")
    convert(tmp_path, None)
    found = load_file(tmp_path / "model.safetensors")
    assert torch.equal(found["a"], shared)
    assert torch.equal(found["b"], shared)
    assert torch.equal(found["c"], shared.T)
    assert not (tmp_path / "pytorch_model.bin").exists()


def test_unpickler_knows_no_secret_and_ends_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    torch.save({"a": torch.zeros(9)}, tmp_path / "pytorch_model.bin")
    seen: list[dict[str, str]] = []
    stop = threading.Event()
    before = psutil.Process().children()

    def readers() -> list[psutil.Process]:
        children = psutil.Process().children()
        return [each for each in children if "workers.unpickle" in each.cmdline()]

    def look() -> None:
        eventually(readers)
        seen.append(readers()[0].environ())
        stop.set()

    watcher = threading.Thread(target=look)
    watcher.start()
    with pytest.raises(PullCancelled):
        convert(tmp_path, None, stop.is_set)
    watcher.join()
    assert seen == [{}]
    assert set(psutil.Process().children()) <= set(before)


#: Runs the reader's confinement, then what a pickle could try; prints how each trial ends.
READER = """
import sys
from workers.confinement import confine_reader
from tests.support.probe_engine import connect, read, run, socket, start_program, write
source, folder, mode, beside, key = sys.argv[1:]
confine_reader(source, folder, mode)
trials = [(read, source), (write, folder + '/new'), (write, beside), (read, key)]
trials += [(connect, socket.AF_INET, ("127.0.0.1", 9)), (start_program,)]
print([run("function(*rest)", {"function": each[0], "rest": each[1:]}) for each in trials])
"""


@pytest.mark.skipif(Kernel.find().landlock < 3, reason="this kernel has not all that confines")
@pytest.mark.parametrize(
    ("mode", "found"),
    [
        ("require", ["6 bytes", "written", "EACCES", "EACCES", "EPERM", "EPERM"]),
        ("off", ["6 bytes", "written", "written", "6 bytes", "ECONNREFUSED", "started"]),
    ],
)
def test_unpickler_is_confined_to_its_file_and_folder(
    tmp_path: Path, mode: str, found: list[str]
) -> None:
    paths = [tmp_path / name for name in ("source", "beside", "admin.key")]
    for path in paths:
        path.write_text("secret")
    (tmp_path / "folder").mkdir()
    source, beside, key = map(str, paths)
    command = [sys.executable, "-c", READER, source, str(tmp_path / "folder"), mode, beside, key]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(found), done.stderr


#: The reader with a thread that began before it could be confined.
THREADED_READER = """
import sys, threading
from pathlib import Path
from workers.unpickle import main
threading.Thread(target=threading.Event().wait, daemon=True).start()
sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), "require"))
"""


def test_unpickler_refuses_where_confinement_is_required_and_not_whole(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(9)}, tmp_path / "source")
    files = [str(tmp_path / "source"), str(tmp_path / "target")]
    command = [sys.executable, "-c", THREADED_READER, *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "'require', and this machine lacks: threads" in done.stdout


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["pytorch_model.bin", "model.bin", "a/pytorch_model.bin"], ["pytorch_model.bin"]),
        (["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"], ["pytorch_model.bin"]),
        (
            ["pytorch_model-00002-of-00002.bin", "pytorch_model-00001-of-00002.bin"],
            ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"],
        ),
        (
            ["pytorch_model.fp16.bin", "text.pt", "optimizer.bin", "pytorch_model.bin.index.json"],
            [],
        ),
    ],
)
def test_selection_of_the_pickles_of_a_model(names: list[str], taken: list[str]) -> None:
    assert pickled(names) == taken


def test_commands_pull_pickles_only_when_told_to(tmp_path: Path) -> None:
    """Allow pickles by the flag for one pull, and by the setting of the model's future name."""
    source, home = only_pickles(make_vits(tmp_path / "m")), tmp_path / "home"
    words = ("models", "import", str(source), "--name")
    refused = run(home, *words, "one")
    assert refused.returncode == 1
    assert "allow_pickles" in refused.stderr
    assert run(home, *words, "one", "--allow-pickles").returncode == 0
    config = tmp_path / "config.yaml"
    config.write_text("models: {two: {allow_pickles: true}}")
    assert run(home, *words, "two", "--config", str(config)).returncode == 0
    assert run(home, *words, "three", "--config", str(config)).returncode == 1
    assert np.all([run(home, "models", "verify", name).returncode == 0 for name in ("one", "two")])
