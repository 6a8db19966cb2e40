"""Pipelines that cannot be loaded are refused with the reason, and without a path."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.numpy import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor

from tests.support.engine_runs import finals
from tests.support.image_harness import ImageHarness
from tests.support.models.pipelines import make
from workers.engines.base import Refused
from workers.engines.image import loading
from workers.engines.image.engine import ImageEngine
from workers.protocol import ImageDone, Load

#: what diffusers' schedulers do with numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("sd", tmp_path_factory.mktemp("original") / "sd")


@pytest.fixture
def repository(original: Path, tmp_path: Path) -> Path:
    """Provide a copy of the repository, which a test may break."""
    return Path(shutil.copytree(original, tmp_path / "model"))


def load(folder: Path, **spec: object) -> ImageEngine:
    engine = ImageEngine()
    spec = {"threads": 1, **spec}
    engine.load(Load(model="m", engine="image", path=str(folder), **spec), lambda _: None)  # type: ignore[arg-type]
    return engine


def lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / UNET)
    del tensors["conv_out.bias"]
    save_file(tensors, folder / UNET, metadata={"format": "pt"})


def change_a_shape(folder: Path) -> None:
    tensors = load_file(folder / UNET)
    tensors["conv_out.bias"] = np.zeros(7, np.float32)
    save_file(tensors, folder / UNET, metadata={"format": "pt"})


def cut_the_file(folder: Path) -> None:
    data = (folder / UNET).read_bytes()
    (folder / UNET).write_bytes(data[: len(data) // 2])


def lose_a_component(folder: Path) -> None:
    shutil.rmtree(folder / "vae")


def leave_only_pickles(folder: Path) -> None:
    torch.save({"x": torch.zeros(1)}, folder / "unet" / "diffusion_pytorch_model.bin")
    (folder / UNET).unlink()


def name_foreign_code(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = ["pipeline", "Mine"]
    (folder / "model_index.json").write_text(json.dumps(index))


def garble_the_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


@pytest.mark.parametrize(
    ("defect", "words"),
    [
        (lose_a_tensor, "conv_out.bias"),
        (change_a_shape, "unet"),
        (cut_the_file, "unet"),
        (lose_a_component, "vae"),
        (leave_only_pickles, "unet"),
        (name_foreign_code, "code of its own"),
        (garble_the_index, "not valid"),
    ],
)
def test_load_of_damaged_files_is_refused_with_the_reason(
    repository: Path, defect: Callable[[Path], None], words: str
) -> None:
    defect(repository)
    with pytest.raises(Refused) as refused:
        load(repository)
    assert refused.value.code == "MODEL_LOAD_FAILED"
    assert words.replace("code of its own", "own code") in refused.value.message
    assert str(repository) not in refused.value.message


def test_load_takes_weights_in_half_precision_only(repository: Path, tmp_path: Path) -> None:
    for part in ("unet", "vae", "text_encoder"):
        [path] = (repository / part).glob("*.safetensors")
        path.rename(path.with_suffix(".fp16.safetensors"))
    harness = ImageHarness("sd", tmp_path, load(repository), None)
    [drawn] = finals(harness.run(harness.job())).values()
    assert isinstance(drawn, ImageDone)


def test_parts_are_placed_one_by_one(repository: Path) -> None:
    """Each goes to the card before the next is read, so that RAM holds one of them at most."""
    read: list[float] = []
    placed: list[str] = []

    def place(model: torch.nn.Module) -> torch.nn.Module:
        placed.append(type(model).__name__)
        assert len(read) == len(placed) - 1, "another one was read before"
        return model.to("meta")

    index = loading._index(repository)
    parts = loading.load_models(repository, index, torch.float32, read.append, place)
    assert len(placed) == len(parts) == len(read) >= 3
    for model in parts.values():
        assert {each.device.type for each in model.parameters()} == {"meta"}


def test_dtype_of_the_settings_is_obeyed(repository: Path, tmp_path: Path) -> None:
    engine = load(repository, dtype="bfloat16")
    assert engine._pipelines.base.unet.dtype is torch.bfloat16
    harness = ImageHarness("sd", tmp_path, engine, None)
    [drawn] = finals(harness.run(harness.job())).values()
    assert isinstance(drawn, ImageDone)


def test_safety_checker_makes_images_black_and_marks_them(repository: Path, tmp_path: Path) -> None:
    small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    vision = {**small, "num_hidden_layers": 1, "image_size": 16, "patch_size": 8}
    config = CLIPConfig(
        vision_config=vision, text_config={**small, "num_hidden_layers": 1}, projection_dim=16
    )
    torch.manual_seed(0)
    checker = StableDiffusionSafetyChecker(config)
    checker.concept_embeds_weights.data.fill_(-10.0)  # everything is too near to something
    pipe = DiffusionPipeline.from_pretrained(repository, dtype=torch.float32)
    pipe.register_modules(
        safety_checker=checker,
        feature_extractor=CLIPImageProcessor(size=16, crop_size=16),
    )
    pipe.save_pretrained(tmp_path / "checked")
    harness = ImageHarness("sd", tmp_path, load(tmp_path / "checked"), None)
    job = harness.job()
    [drawn] = finals(harness.run(job)).values()
    assert isinstance(drawn, ImageDone)
    assert drawn.images[0].filtered
    assert not harness.pixels(job).any()
