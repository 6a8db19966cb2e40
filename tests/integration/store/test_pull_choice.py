"""Selection of a repository's files, and refusals before any weights are fetched."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from model_store.errors import BadFiles, PullCancelled, StoreError
from model_store.hub.pull import Plan, plan
from model_store.store import ModelStore
from tests.support.hub import REPO, FakeHub, Fault, fake_hub
from tests.support.model_folders import pipeline, sharded
from tests.support.pulls import WEIGHTS, pulled, refused, request_of

INDEX = "model.safetensors.index.json"
FIRST, SECOND = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    with fake_hub(sharded(tmp_path_factory.mktemp("origin") / "model")) as hub:
        yield hub


@pytest.fixture
def hub(served: FakeHub) -> Iterator[FakeHub]:
    """Provide the hub, with its files as they were at first."""
    before = dict(served.files)
    served.sent.clear()
    yield served
    served.files = before


def looked_at(store: ModelStore, hub: FakeHub) -> Plan:
    return plan(store, request_of(hub))


def test_plan_is_what_the_pull_does(store: ModelStore, hub: FakeHub) -> None:
    hub.files["model-00003-of-00003.safetensors"] = hub.files[FIRST]
    hub.files["original/model.safetensors"] = hub.files[FIRST]
    hub.files["onnx/model.onnx"] = hub.files["model.gguf"] = hub.files["tf_model.h5"] = b"x" * 99
    hub.files["additional_chat_templates/rag.jinja"] = b"{{ messages }}"
    shown = looked_at(store, hub)
    assert store.names() == []
    assert not any(path.endswith(".safetensors") for path in hub.sent), "a dry run takes no weights"
    assert (shown.repo, shown.name, shown.kind, shown.gated) == (REPO, REPO, "text", False)
    assert {file.path for file in shown.files} == {
        "config.json", "tokenizer_config.json", INDEX, FIRST, SECOND,
        "additional_chat_templates/rag.jinja",
    }  # fmt: skip
    assert shown.missing_bytes == shown.total_bytes == sum(file.size for file in shown.files)
    assert shown.fits
    plans: list[Plan] = []
    made = pulled(store, hub, planned=plans.append)
    assert plans[0].files[-1] == shown.files[-1]
    assert (made.total_bytes, made.revision) == (shown.total_bytes, shown.revision)
    assert {entry.path for entry in made.files} == {file.path for file in shown.files}
    assert looked_at(store, hub).missing_bytes == 0


def test_plan_knows_what_decides_the_memory_before_any_weights_come(
    store: ModelStore, hub: FakeHub, tmp_path: Path
) -> None:
    with fake_hub(pipeline(tmp_path / "pipeline")) as images:
        for number, each in enumerate((hub, images)):
            found = looked_at(store, each).expected
            assert not any(path.endswith(".safetensors") for path in each.sent)
            assert found is not None
            made = pulled(store, each, name=f"model-{number}")
            same = ("kind", "engine", "architecture", "dtype", "max_context", "vocab_size")
            more = ("kv_bytes_per_token", "image_side", "total_bytes", "source", "revision")
            assert [getattr(found, name) for name in (*same, *more)] == [
                getattr(made, name) for name in (*same, *more)
            ]
            headers = found.weight_bytes - made.weight_bytes
            assert 0 < headers < 1000, "the files' sizes, of which the headers are a part"
            assert found.components.keys() == made.components.keys()
    hub.files[SECOND] = hub.files[FIRST] = (1 << 40).to_bytes(8, "little") + b"x"
    told = {**json.loads(hub.files["config.json"]), "model_type": "x" * 1_000_000}
    hub.files["config.json"] = json.dumps(told).encode()
    odd = looked_at(store, hub).expected
    assert odd is not None, "a header that lies is refused once it is here"
    assert odd.dtype is None
    assert len(str(odd)) < 10_000


def test_pull_reads_no_text_that_has_rotted_in_the_store(store: ModelStore, hub: FakeHub) -> None:
    """Its size and its times are as they were, so that only reading it tells."""
    pulled(store, hub, name="first")
    rotten = ["config.json", "tokenizer_config.json"]
    for path in (store.path("first") / name for name in rotten):
        before = path.stat()
        path.write_bytes(b"x" * before.st_size)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    pulled(store, hub, name="second")
    assert store.verify("second") == []
    assert store.verify("first") == rotten


def test_resume_after_a_clean_up_fetches_no_shard_again(store: ModelStore, hub: FakeHub) -> None:
    """Clean up with no grace for blobs that no model uses."""
    hub.faults[SECOND] = Fault(stall_after=0)
    digest = hashlib.sha256(hub.files[FIRST]).hexdigest()

    def first_is_there() -> bool:
        """Return True once the second shard stalls and the first is a blob."""
        return bool(list(store.partial.glob(f"pull-*/{digest}.held")))

    refused(store, hub, PullCancelled, cancelled=first_is_there)
    store.blobs.path(digest).unlink()
    hub.sent.clear()
    pulled(store, hub)
    assert set(hub.sent) == {SECOND}
    assert store.verify(REPO) == []


def bare_adapter(files: Files) -> None:
    files.clear()
    config = {"base_model_name_or_path": "org/base", "peft_type": "LORA"}
    files["adapter_config.json"] = json.dumps(config).encode()
    files["adapter_model.bin"] = b"x"


def gguf(files: Files) -> None:
    files.clear()
    files["model-q4.gguf"] = b"x"


def onnx(files: Files) -> None:
    _without_weights(files)
    files["onnx/model.onnx"] = b"x"


def pickles(files: Files) -> None:
    _without_weights(files)
    files["pytorch_model.bin"] = b"x"


def nothing(files: Files) -> None:
    _without_weights(files)


def shard_missing(files: Files) -> None:
    del files[SECOND]


def index_missing(files: Files) -> None:
    del files[INDEX]


def index_leads_elsewhere(files: Files) -> None:
    files[INDEX] = json.dumps({"weight_map": {"x": "../../secret.safetensors"}}).encode()


def index_names_pickles(files: Files) -> None:
    files[INDEX] = json.dumps({"weight_map": {"x": "model.bin"}}).encode()


def index_is_no_map(files: Files) -> None:
    files[INDEX] = b'{"weight_map": [1, 2]}'


def code(files: Files) -> None:
    files["config.json"] = files["config.json"].replace(b"{", b'{"auto_map": {"a": "b.C"}, ', 1)


def no_tokenizer(files: Files) -> None:
    del files["tokenizer_config.json"]


def no_config(files: Files) -> None:
    del files["config.json"]


def unknown_architecture(files: Files) -> None:
    files["config.json"] = files["config.json"].replace(b"LlamaForCausalLM", b"NobodysModel")


def config_is_no_json(files: Files) -> None:
    files["config.json"] = b"[" * 100_000


def single_files(files: Files) -> None:
    files.clear()
    files["sd-base.safetensors"] = files["sd-refiner.safetensors"] = b"x"


def _without_weights(files: Files) -> None:
    for path in (INDEX, FIRST, SECOND):
        del files[path]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (bare_adapter, "adapter"),
        (gguf, "GGUF files"),
        (onnx, "ONNX files"),
        (pickles, "allow-pickles"),
        (nothing, "no safetensors weights"),
        (shard_missing, f"names {SECOND}, which the repository lacks"),
        (index_missing, "their index is missing"),
        (index_leads_elsewhere, "cannot be taken"),
        (index_names_pickles, "to a pickle"),
        (index_is_no_map, "weight_map"),
        (code, "code of its own"),
        (no_tokenizer, "no tokenizer"),
        (no_config, "no config.json"),
        (unknown_architecture, "NobodysModel"),
        (config_is_no_json, "not valid JSON"),
        (single_files, "other programs"),
    ],
)
def test_plan_and_pull_refuse_what_is_no_model_before_weights_come(
    store: ModelStore, hub: FakeHub, change: Callable[[Files], None], said: str
) -> None:
    change(hub.files)
    with pytest.raises(StoreError) as caught:
        looked_at(store, hub)
    assert said in str(caught.value)
    assert said in refused(store, hub, BadFiles)
    assert not any(path.endswith((".safetensors", ".bin", ".gguf")) for path in hub.sent)
    assert list(store.partial.iterdir()) == [] or not any(store.partial.rglob("*.part"))


def test_plan_of_a_pipeline_takes_one_precision_of_each_part(
    store: ModelStore, tmp_path: Path
) -> None:
    folder = pipeline(tmp_path / "origin")
    name = "diffusion_pytorch_model.safetensors"
    half = (folder / "unet" / name).read_bytes()
    (folder / "unet" / name).rename(folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    (folder / "safety_checker/model.fp16.safetensors").write_bytes(half)
    with fake_hub(folder) as hub:
        made = pulled(store, hub)
    taken = {entry.path for entry in made.files if entry.path.endswith(".safetensors")}
    assert taken == {
        "unet/diffusion_pytorch_model.fp16.safetensors", "safety_checker/model.safetensors",
    }  # fmt: skip
    assert WEIGHTS not in taken
