"""Settings of an image model: LoRAs, cached steps, compiling, offload."""

import gc
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import psutil
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch._dynamo.utils import counters

from tests.support.engine_runs import finals
from tests.support.image_harness import ImageHarness, open_image_harness
from tests.support.models.pipelines import make
from workers.engines.base import Refused
from workers.engines.image import engine as engine_module
from workers.engines.image.compiler import missing_for_compile
from workers.engines.image.engine import ImageEngine
from workers.engines.image.preview import preview_refusal
from workers.protocol import DeviceKind, Failed, ImageDone, ImageOptions, Load, Lora

#: what diffusers' schedulers do with numpy, and what peft says of a second adapter
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array:DeprecationWarning", "ignore:Already found a `peft_config`:UserWarning"
)

NAMES = ("bold", "soft")
NEEDS_COMPILER = pytest.mark.skipif(missing_for_compile("cpu") is not None, reason="no compiler")


def make_lora(repository: Path, folder: Path, seed: int) -> Path:
    """Return a LoRA for the denoiser of a pipeline, as people publish them."""
    unet = StableDiffusionPipeline.from_pretrained(repository, dtype=torch.float32).unet
    torch.manual_seed(seed)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian"))
    layers = get_peft_model_state_dict(unet)
    layers = {name: torch.randn_like(tensor) for name, tensor in layers.items()}
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
    return folder / "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def lora_harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageHarness]:
    """Provide an engine with two LoRAs; the bare pipeline has them too, switched off."""
    folder = tmp_path_factory.mktemp("lora_harness")
    repository = make("sd", folder / "model")
    files = {
        name: str(make_lora(repository, folder / name, seed)) for seed, name in enumerate(NAMES)
    }
    harness = open_image_harness("sd", folder / "harness", ImageOptions(loras=files))
    for name, path in files.items():
        harness.bare.load_lora_weights(path, adapter_name=name)
    harness.bare.disable_lora()
    yield harness
    harness.engine.close()


def expected(harness: ImageHarness, job: Any) -> Any:
    """Return the library's image with the job's LoRAs."""
    if job.adapters:
        harness.bare.enable_lora()
        names, scales = zip(*[(each.name, each.scale) for each in job.adapters], strict=True)
        harness.bare.set_adapters(list(names), list(scales))
    try:
        return harness.expected(job)
    finally:
        harness.bare.disable_lora()


def test_loras_change_only_the_images_that_ask_for_them(lora_harness: ImageHarness) -> None:
    plain = lora_harness.job()
    bold = lora_harness.job(adapters=(Lora("bold", 1.0),), steps=9)
    both = lora_harness.job(adapters=(Lora("bold", 0.5), Lora("soft", 0.8)), steps=7)
    lora_harness.run(plain, bold, both)
    images = [lora_harness.pixels(job) for job in (plain, bold, both)]
    for job, image in zip((plain, bold, both), images, strict=True):
        assert np.array_equal(image, expected(lora_harness, job))
    assert not np.array_equal(images[1], lora_harness.expected(lora_harness.job(steps=9)))
    again = lora_harness.job()
    lora_harness.run(again)
    assert np.array_equal(lora_harness.pixels(again), images[0])


def test_lora_that_fails_as_it_is_switched_on_is_on_for_no_later_image(
    lora_harness: ImageHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch = StableDiffusionPipeline.set_adapters

    def fail_at_the_end(pipe: StableDiffusionPipeline, *given: Any) -> None:
        switch(pipe, *given)
        raise RuntimeError("no room for it")

    bold, plain = lora_harness.job(adapters=(Lora("bold", 1.0),)), lora_harness.job()
    with monkeypatch.context() as patch:
        patch.setattr(StableDiffusionPipeline, "set_adapters", fail_at_the_end)
        ends = finals(lora_harness.run(bold))
    assert isinstance(ends[bold.id], Failed)
    lora_harness.run(plain)
    assert np.array_equal(lora_harness.pixels(plain), lora_harness.expected(plain))


def test_loras_that_take_turns_a_thousand_times_take_no_more_memory(
    lora_harness: ImageHarness,
) -> None:
    loras = lora_harness.engine._loras
    ways = [(Lora("bold", 1.0),), (), (Lora("soft", 0.5), Lora("bold", 0.2)), (Lora("soft", 1.0),)]

    def switch(times: int) -> int:
        for number in range(times):
            loras.activate(ways[number % len(ways)])
        gc.collect()
        return psutil.Process().memory_info().rss

    before = switch(40)
    assert switch(1000) - before < 20_000_000
    loras.activate(())


def test_lora_that_is_unknown_is_refused(lora_harness: ImageHarness) -> None:
    for adapters in ((Lora("loud"),), (Lora("bold"), Lora("bold"))):
        with pytest.raises(Refused) as refused:
            lora_harness.engine.prepare(lora_harness.job(adapters=adapters))
        assert (refused.value.code, refused.value.param) == ("INVALID_REQUEST", "loras")
    with pytest.raises(Refused) as refused:
        lora_harness.engine.prepare(lora_harness.job(adapters=(Lora("../x"),)))
    assert refused.value.details == {"loras": sorted(NAMES)}


def refusal(repository: Path, options: ImageOptions) -> Refused:
    with pytest.raises(Refused) as refused:
        ImageEngine().load(
            Load(model="m", engine="image", path=str(repository), image=options), lambda _: None
        )
    return refused.value


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("sd", tmp_path_factory.mktemp("sd"))


def test_lora_that_does_not_load_refuses_the_load(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    for path in (tmp_path / "broken.safetensors", tmp_path / "missing.safetensors"):
        found = refusal(repository, ImageOptions(loras={"x": str(path)}))
        assert found.code == "MODEL_LOAD_FAILED"
        assert str(tmp_path) not in found.message


def test_options_that_model_or_device_cannot_do_are_refused_by_name(repository: Path) -> None:
    for options, name in [
        (ImageOptions(offload="model"), "offload"),
        (ImageOptions(offload="group"), "offload"),
        (ImageOptions(step_cache="first_block"), "step_cache"),
    ]:
        found = refusal(repository, options)
        assert found.code == "MODEL_LOAD_FAILED"
        assert name in found.message


def test_step_cache_runs_one_job_after_another(tmp_path: Path) -> None:
    harness = open_image_harness("flux", tmp_path, ImageOptions(step_cache="first_block"))
    jobs = [harness.job("a cat", steps=8), harness.job("a dog", steps=5)]
    alone = {}
    for job in jobs:
        harness.run(job)
        alone[job.id] = harness.pixels(job)
    gone = harness.job(steps=8)
    harness.submit(gone)
    harness.step_until(3, gone)
    harness.engine.cancel(gone.id)
    final = finals(harness.run(*jobs))
    assert all(isinstance(final[job.id], ImageDone) for job in jobs)
    for job in jobs:
        assert np.array_equal(harness.pixels(job), alone[job.id]), "nothing is left of other runs"
    harness.engine.close()


@pytest.mark.rehearsal  # the compiler takes ten seconds of CPU
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own parts
@NEEDS_COMPILER
def test_compile_gives_the_same_in_all_sizes_without_compiling_again(tmp_path: Path) -> None:
    harness = open_image_harness("sd", tmp_path, ImageOptions(compile=True))
    compiled = counters["stats"]["unique_graphs"]
    assert compiled
    jobs = [
        harness.job(),
        harness.job(guidance_scale=1.0),
        harness.job(seeds=(1, 2, 3, 4)),
        harness.job(width=128, seeds=(5,)),
        harness.job(width=96, height=160, seeds=(6, 7)),
    ]
    for job in jobs:
        harness.run(job)
        assert np.abs(harness.pixels(job) - harness.expected(job)).max() <= 2
    assert counters["stats"]["unique_graphs"] == compiled
    harness.engine.close()


@NEEDS_COMPILER
def test_compile_gives_a_step_the_time_of_the_compiler(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = diffusers.UNet2DConditionModel
    monkeypatch.setattr(unet, "compile_repeated_blocks", lambda *_, **__: None)
    monkeypatch.setattr(engine_module, "_STEP_TIMEOUT", {"cpu": 120.0})
    step_timeout = {}
    for compiled in (False, True):
        options = ImageOptions(compile=compiled)
        spec = Load(model="m", engine="image", path=str(repository), image=options)
        step_timeout[compiled] = ImageEngine().load(spec, lambda _: None).step_timeout
    assert step_timeout == {False: 120.0, True: 600.0}


@pytest.mark.parametrize(("device", "language"), [("cuda", "C"), ("cpu", "C++")])
def test_compile_without_a_compiler_is_refused_before_the_model_is_read(
    device: DeviceKind, language: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    spec = Load(
        model="m", engine="image", path="none", device=device, image=ImageOptions(compile=True)
    )
    with pytest.raises(Refused, match=re.escape(f"needs a {language} compiler")) as refused:
        ImageEngine().load(spec, lambda _: pytest.fail("it began to load"))
    assert refused.value.code == "MODEL_LOAD_FAILED"
    assert "set image.compile to false" in refused.value.message


def test_compile_needs_headers_and_the_compiler_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "mycc").touch(mode=0o755)
    path = {"PATH": str(tmp_path)}
    assert "Python.h" in (missing_for_compile("cuda", {**path, "CC": "mycc"}, tmp_path) or "")
    (tmp_path / "Python.h").touch()
    assert missing_for_compile("cuda", {**path, "CC": "mycc"}, tmp_path) is None
    assert "CC names" in (missing_for_compile("cuda", {**path, "CC": "lost"}, tmp_path) or "")
    assert "g++ was not found" in (missing_for_compile("cpu", path, tmp_path) or "")


def test_preview_is_refused_while_whole_models_are_offloaded(
    repository: Path, tmp_path: Path
) -> None:
    """There is no card to offload from, so the engine is told what its load would tell it."""
    harness = ImageHarness("sd", tmp_path, ImageEngine(), None)
    harness.engine.load(Load(model="m", engine="image", path=str(repository)), lambda _: None)
    pipe = harness.engine._pipelines.base
    assert preview_refusal(pipe, "none") is preview_refusal(pipe, "group") is None
    harness.engine.prepare(harness.job(preview_every=1))
    harness.engine._no_preview = preview_refusal(pipe, "model")
    harness.engine.prepare(harness.job())
    with pytest.raises(Refused, match=r"image\.offload") as found:
        harness.engine.prepare(harness.job(preview_every=1))
    assert (found.value.code, found.value.param) == ("UNSUPPORTED_PARAMETER", "preview")
