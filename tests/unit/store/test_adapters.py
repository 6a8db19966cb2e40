"""Adapters in the store: what their files tell, which base they find, and which are refused."""

import asyncio
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from model_store.adapters import missing_base
from model_store.errors import BadFiles, BaseOfAdapters, ChangedFiles
from model_store.inspection import inspect, refreshed
from model_store.manifest import read_manifest
from model_store.store import ModelStore
from tests.support.lora_files import RANK, write_text_lora
from tests.support.model_folders import llama, pipeline, write

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

Make = Callable[[Path], object]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return llama(tmp_path / "llama")


@pytest.fixture
def store(tmp_path: Path, base: Path) -> ModelStore:
    """Provide a store with the base that adapters here name."""
    store = ModelStore(tmp_path / "models")
    store.import_folder(base, "org/base")
    return store


def test_adapter_is_its_base_by_another_name(store: ModelStore, base: Path, tmp_path: Path) -> None:
    own = inspect(write_text_lora(base, tmp_path / "lora", named="org/base"))
    assert (own.kind, own.engine, own.base) == ("adapter", "text", "org/base")
    store.import_folder(tmp_path / "lora", "tuned")
    made, whole = store.get("tuned"), store.get("org/base")
    assert (made.name, made.adapter_of, made.kind) == ("tuned", "org/base", "text")
    assert (made.max_context, made.capabilities) == (whole.max_context, whole.capabilities)
    assert made.weight_bytes == whole.weight_bytes + own.weight_bytes
    assert {each.path for each in made.files} == {CONFIG, WEIGHTS}
    assert store.weights_path("tuned") == store.path("org/base")
    assert store.weights_path("org/base") == store.path("org/base")


def test_adapter_of_another_key_is_not_named_where_its_base_is_to_be_removed(
    store: ModelStore, base: Path, tmp_path: Path
) -> None:
    for name in ("secret", "mine"):
        store.import_folder(write_text_lora(base, tmp_path / name, named="org/base"), name)
    with pytest.raises(BaseOfAdapters, match="secret"):
        store.remove("org/base")
    with pytest.raises(BaseOfAdapters, match="key is not for") as caught:
        store.remove("org/base", may_see="mine".__eq__)
    assert "mine" in caught.value.message
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("named", "found"),
    [("ORG/Base", True), ("hub/name", True), ("base", False), ("/data/org/base", False)],
)
def test_adapter_finds_its_base_by_its_name_here_or_on_the_hub(
    tmp_path: Path, base: Path, named: str, found: bool
) -> None:
    store = ModelStore(tmp_path / "models")
    with store.draft() as draft:
        llama(draft / "files")
        store.finish(draft, "org/base", source="hub:Hub/Name")
    store.import_folder(write_text_lora(base, tmp_path / "lora", named=named), "tuned")
    assert (store.get("tuned").adapter_of == "org/base") is found
    assert store.get("tuned").kind == ("text" if found else "adapter")


def test_adapter_whose_base_comes_later_is_joined_then(tmp_path: Path, base: Path) -> None:
    store = ModelStore(tmp_path / "models")
    store.import_folder(write_text_lora(base, tmp_path / "lora", named="later"), "tuned")
    assert "later, which is not in the store" in missing_base(store.get("tuned"))
    store.import_folder(base, "later")
    assert store.get("tuned").adapter_of == "later"
    on_disk = read_manifest(store.path("tuned").parent)
    assert (on_disk.kind, on_disk.adapter_of) == ("adapter", None)


def test_adapter_is_no_base_of_another(store: ModelStore, base: Path, tmp_path: Path) -> None:
    store.import_folder(write_text_lora(base, tmp_path / "a", named="org/base"), "first")
    store.import_folder(write_text_lora(base, tmp_path / "b", named="first"), "second")
    assert store.get("second").kind == "adapter"


def test_adapter_of_a_text_model_has_no_pipeline_as_its_base(tmp_path: Path, base: Path) -> None:
    store = ModelStore(tmp_path / "models")
    store.import_folder(pipeline(tmp_path / "painter"), "painter")
    store.import_folder(write_text_lora(base, tmp_path / "lora", named="painter"), "tuned")
    assert store.get("tuned").kind == "adapter"


def test_adapter_keeps_its_base(store: ModelStore, base: Path, tmp_path: Path) -> None:
    store.import_folder(write_text_lora(base, tmp_path / "lora", named="org/base"), "tuned")
    with pytest.raises(BaseOfAdapters, match=r"org/base is the base of .* tuned\. Remove it first"):
        store.remove("org/base")
    store.remove("tuned")
    store.remove("org/base")
    assert store.names() == []


def test_adapter_is_not_loaded_over_a_base_that_has_changed(
    store: ModelStore, base: Path, tmp_path: Path
) -> None:
    store.import_folder(write_text_lora(base, tmp_path / "lora", named="org/base"), "tuned")

    async def opened() -> None:
        async with store.loading(["tuned"]):
            pass

    asyncio.run(opened())
    config = store.path("org/base") / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(ChangedFiles, match="org/base"):
        asyncio.run(opened())


def test_adapter_trained_from_a_folder_has_the_base_that_its_card_names(
    base: Path, tmp_path: Path
) -> None:
    lora = write_text_lora(base, tmp_path / "lora", named="/home/me/llama")
    assert inspect(lora).base == "/home/me/llama"
    write(lora / "README.md", "---\nbase_model:\n- org/base\n---\n")
    assert inspect(lora).base == "org/base"
    write_text_lora(base, tmp_path / "lora", named="org/other")
    assert inspect(lora).base == "org/other"


def test_adapter_has_the_base_that_its_import_names(
    store: ModelStore, base: Path, tmp_path: Path
) -> None:
    lora = write_text_lora(base, tmp_path / "lora", named="/home/me/llama")
    store.import_folder(lora, "tuned", base="org/base")
    assert store.get("tuned").adapter_of == "org/base"
    assert refreshed(lora, store.read("tuned")).base == "org/base"
    with pytest.raises(BadFiles, match="not an adapter"):
        store.import_folder(base, "model", base="org/base")


def changed(**fields: Any) -> Make:
    def make(folder: Path) -> None:
        told = json.loads((folder / CONFIG).read_text())
        write(folder / CONFIG, {**told, **fields})

    return make


def weights(entries: Any, data: int = 0) -> Make:
    def make(folder: Path) -> None:
        raw = json.dumps(entries).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(data))

    return make


def single_file(folder: Path) -> None:
    (folder / CONFIG).unlink()


PAIR = {"a.lora_A.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}
HALF = {
    "a.lora_B.weight": {"dtype": "F32", "shape": [RANK, RANK], "data_offsets": [0, 4 * RANK**2]}
}

REFUSED: dict[str, tuple[Make, str]] = {
    "another type": (changed(peft_type="PROMPT_TUNING"), "of the type 'PROMPT_TUNING'"),
    "no type": (changed(peft_type=None), "of the type 'None'"),
    "a type that is a list": (changed(peft_type=["LORA"]), "only LoRA is run"),
    "another task": (changed(task_type="SEQ_CLS"), "for the task 'SEQ_CLS'"),
    "a task that is a list": (changed(task_type=[]), "for the task"),
    "a module that is imported": (
        changed(megatron_config={"a": 1}, megatron_core="os"),
        "megatron_config is not supported",
    ),
    "layers that are doubled": (changed(layer_replication=[[0, 2]]), "layer_replication"),
    "what begins at some tokens": (changed(alora_invocation_tokens=[3]), "alora_invocation_tokens"),
    "what chooses among others": (changed(arrow_config={"top_k": 2}), "arrow_config"),
    "a huge rank": (changed(r=10**6), "another rank"),
    "a huge rank of layers": (changed(rank_pattern={"q_proj": 10**9}), "another rank"),
    "a huge rank beside a pattern": (changed(r=10**9, rank_pattern={"x": 1}), "another rank"),
    "ranks that are a list": (changed(rank_pattern=[10**9]), "another rank"),
    "a rank that is text": (changed(r="8"), "another rank"),
    "a rank of NaN": (changed(lora_alpha=float("nan")), "NaN"),
    "code": (changed(auto_map={"a": "b.C"}), "code of its own"),
    "a config that is a list": (lambda folder: write(folder / CONFIG, []), "JSON object"),
    "a config that is no JSON": (lambda folder: write(folder / CONFIG, "{"), "not valid JSON"),
    "pickled weights": (
        lambda folder: (folder / WEIGHTS).rename(folder / "adapter_model.bin"),
        "as a pickle, which can run code",
    ),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "nowhere"),
    "weights that lie": (weights(PAIR, 3), "not a whole safetensors"),
    "weights of something else": (
        weights({"a.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}, 16),
        "hold no LoRA",
    ),
    "halves of pairs": (weights(HALF, 4 * RANK**2), "hold no LoRA"),
    "weights of nothing": (weights({}), "hold no LoRA|another rank"),
    "a text model's weights alone": (single_file, "adapter_config.json is missing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_adapter_that_is_malformed_is_refused(
    store: ModelStore, base: Path, tmp_path: Path, case: str
) -> None:
    make, why = REFUSED[case]
    folder = write_text_lora(base, tmp_path / "lora", named="org/base")
    make(folder)
    with pytest.raises(BadFiles, match=why) as caught:
        store.import_folder(folder, "tuned")
    assert str(tmp_path) not in caught.value.message
    assert store.names() == ["org/base"]


@pytest.mark.parametrize(
    ("tensor", "engine"),
    [
        ("unet.a.to_q.lora_A.weight", "image"),
        ("unet.a.to_q.lora.up.weight", "image"),
        ("lora_unet_a_to_q.lora_down.weight", "image"),
        ("lora_te1_a.lora_up.weight", "image"),
        ("transformer.a.lora_B.weight", "image"),
        ("diffusion_model.a.lora_A.weight", "image"),
        ("base_model.model.a.lora_A.weight", None),
        ("model.diffusion_model.input_blocks.0.weight", None),
        ("exploration_upper.weight", None),
    ],
)
def test_adapter_in_a_single_file_is_known_by_the_names_of_its_tensors(
    tmp_path: Path, tensor: str, engine: str | None
) -> None:
    save_file({tensor: np.ones((2, 2), np.float32)}, tmp_path / "style.safetensors")
    if engine is None:
        with pytest.raises(BadFiles, match=r"config\.json"):
            inspect(tmp_path)
        return
    found = inspect(tmp_path)
    assert (found.kind, found.engine, found.base) == ("adapter", engine, None)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"unet.r": 10**9}, "another rank"),
        ({"unet.r": 2, "unet.rank_pattern": {"a": 10**9}}, "another rank"),
        ({"text_encoder.r": 2, "unet.r": 2, "unet.megatron_config": {"a": 1}}, "megatron_config"),
        ([], "no JSON object"),
        ("{", "not valid JSON"),
    ],
)
def test_adapter_in_a_single_file_is_held_to_the_config_that_it_brings(
    tmp_path: Path, told: Any, why: str
) -> None:
    tensors = {"unet.a.to_q.lora_A.weight": np.ones((2, 4), np.float32)}
    raw = told if isinstance(told, str) else json.dumps(told)
    save_file(tensors, tmp_path / "style.safetensors", {"lora_adapter_metadata": raw})
    with pytest.raises(BadFiles, match=why):
        inspect(tmp_path)
    good = json.dumps({"unet.r": 2, "unet.lora_alpha": 4})
    save_file(tensors, tmp_path / "style.safetensors", {"lora_adapter_metadata": good})
    assert inspect(tmp_path).engine == "image"


def test_adapter_is_taken_for_no_base_but_those_allowed(
    store: ModelStore, base: Path, tmp_path: Path
) -> None:
    for name, named in (("theirs", "org/base"), ("none", "nowhere")):
        lora = write_text_lora(base, tmp_path / name, named=named)
        narrow = ModelStore(store.root, bases=["other"])
        with pytest.raises(BadFiles, match=f"adapter for {named}, and the API key"):
            narrow.import_folder(lora, "tuned")
        assert store.names() == ["org/base"]
    ours = ModelStore(store.root, bases=["org/base"])
    assert ours.import_folder(tmp_path / "theirs", "tuned").base == "org/base"
