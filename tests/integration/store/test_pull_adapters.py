"""Adapters from the hub: planned, pulled and tied to their bases like any model."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from model_store.errors import BadFiles
from model_store.store import ModelStore
from tests.support.hub import REPO, FakeHub, fake_hub
from tests.support.lora_files import write_image_lora, write_text_lora
from tests.support.model_folders import llama, pipeline, write
from tests.support.pulls import pulled, refused

UNET, LORA = "unet/diffusion_pytorch_model.safetensors", "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    """Provide a repository of a LoRA as training leaves it."""
    root = tmp_path_factory.mktemp("hub")
    folder = write_text_lora(llama(root / "base"), root / "origin", named="org/base")
    write(folder / "README.md", "---\nbase_model: org/base\nlicense: mit\n---\n")
    write(folder / "tokenizer.json", "{}")
    (folder / "optimizer.pt").write_bytes(b"pickle")
    with fake_hub(folder) as hub:
        yield hub


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


def test_pull_of_an_adapter_takes_what_serving_needs_and_finds_its_base(
    store: ModelStore, hub: FakeHub, tmp_path: Path
) -> None:
    made = pulled(store, hub)
    names = {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert {each.path for each in made.files} == names
    assert (made.kind, made.base, made.license) == ("adapter", "org/base", "mit")
    store.import_folder(llama(tmp_path / "base"), "org/base")
    assert store.get(REPO).adapter_of == "org/base"


@pytest.mark.parametrize(
    ("fields", "why"),
    [({"peft_type": "IA3"}, "of the type 'IA3'"), ({"task_type": "SEQ_CLS"}, "the task 'SEQ_CLS'")],
)
def test_pull_of_another_adapter_is_refused_before_its_weights_come(
    store: ModelStore, hub: FakeHub, fields: dict[str, str], why: str
) -> None:
    kept = hub.files["adapter_config.json"]
    hub.files["adapter_config.json"] = json.dumps({**json.loads(kept), **fields}).encode()
    hub.requests.clear()
    try:
        assert why in refused(store, hub, BadFiles)
    finally:
        hub.files["adapter_config.json"] = kept
    assert not [path for path, _ in hub.requests if "adapter_model" in path]


@pytest.mark.parametrize("hint", ["name", "tag"])
def test_pull_of_a_single_file_that_is_called_a_lora(
    store: ModelStore, tmp_path: Path, hint: str
) -> None:
    painter = pipeline(tmp_path / "painter")
    save_file({"a.to_q.weight": np.zeros((4, 4), np.float32)}, painter / UNET)
    folder = write_image_lora(painter, tmp_path / "lora", named="painter")
    if hint == "tag":
        (folder / LORA).rename(folder / "style.safetensors")
        write(folder / "README.md", "---\nbase_model: painter\ntags: [art, lora]\n---\n")
    with fake_hub(folder) as hub:
        made = pulled(store, hub)
    assert (made.kind, made.engine, made.base) == ("adapter", "image", "painter")
