"""The size that a pipeline was made for, as the library's pipelines find it out."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from model_store.demo import make_demo_models
from model_store.image_size import own_side
from model_store.manifest import FILES, read_manifest, write_manifest
from model_store.store import ModelStore

EIGHT = {"block_out_channels": [128, 256, 512, 512]}  #: pixels of a latent
PIPELINES: dict[str, tuple[dict[str, Any], int]] = {
    "Stable Diffusion 1.5": ({"unet": {"sample_size": 64}, "vae": EIGHT}, 512),
    "Stable Diffusion XL": ({"unet": {"sample_size": 128}, "vae": EIGHT}, 1024),
    "two sides": ({"unet": {"sample_size": [96, 96]}, "vae": EIGHT}, 768),
    "Stable Diffusion 3": ({"transformer": {"sample_size": 128}, "vae": EIGHT}, 1024),
    "Flux": ({"transformer": {"patch_size": 1}, "vae": EIGHT}, 1024),
    "Sana": (
        {
            "transformer": {"sample_size": 32},
            "vae": {"encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024]},
        },
        1024,
    ),
    "a UNet that does not tell": ({"unet": {"sample_size": None}, "vae": EIGHT}, 0),
    "no decoder": ({"unet": {"sample_size": 64}}, 0),
    "nothing": ({}, 0),
    "nonsense": ({"unet": {"sample_size": "64"}, "vae": {"block_out_channels": 4}}, 0),
    "too large": ({"unet": {"sample_size": 4096}, "vae": EIGHT}, 0),
    "too small": ({"unet": {"sample_size": 4}, "vae": EIGHT}, 0),
}


@pytest.mark.parametrize(("configs", "side"), PIPELINES.values(), ids=PIPELINES.keys())
def test_own_side_is_that_of_the_library_s_pipeline(
    tmp_path: Path, configs: dict[str, Any], side: int
) -> None:
    for part, config in configs.items():
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    assert own_side(tmp_path) == side


def test_own_side_of_a_manifest_from_before_is_read_from_the_files(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    make_demo_models(store, ["demo-image"])
    manifest = store.get("demo-image")
    assert manifest.image_side == 256
    folder = store.path("demo-image").parent
    write_manifest(folder, msgspec.structs.replace(manifest, image_side=0))
    assert read_manifest(folder).image_side == 256
    (folder / FILES / "unet/config.json").unlink()
    assert read_manifest(folder).image_side == 0
