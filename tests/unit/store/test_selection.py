"""Selection of files from layouts of real repositories."""

import pytest

from model_store.errors import BadFiles
from model_store.selection import indices, one_set, select

TEXTS = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]


def shards(stem: str, end: str, count: int = 2) -> list[str]:
    return [f"{stem}-{n:05}-of-{count:05}{end}" for n in range(1, count + 1)]


def test_selection_of_a_sharded_llama_with_its_twins() -> None:
    index = "model.safetensors.index.json"
    wanted = [*TEXTS, index, *shards("model", ".safetensors"), "README.md", "LICENSE.txt"]
    twins = [*shards("pytorch_model", ".bin"), "pytorch_model.bin.index.json", ".gitattributes"]
    original = ["original/consolidated.00.pth", "original/params.json", "original/tokenizer.model"]
    more = ["consolidated.safetensors", "training_args.bin", "optimizer.pt", "model-q4.gguf"]
    assert sorted(select([*wanted, *twins, *original, *more])) == sorted(wanted)


def test_selection_of_a_gpt2_with_everything() -> None:
    wanted = [*TEXTS, "model.safetensors", "merges.txt", "vocab.json"]
    others = ["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "rust_model.ot", "a.png"]
    folders = ["onnx/decoder_model.onnx", "onnx/config.json", "64.tflite", "coreml/a.mlpackage/x"]
    assert sorted(select([*wanted, *others, *folders])) == sorted(wanted)


def test_selection_of_a_stable_diffusion_with_its_twins() -> None:
    model = "diffusion_pytorch_model"
    wanted = ["model_index.json", "unet/config.json", f"unet/{model}.safetensors"]
    wanted += ["vae/config.json", f"vae/{model}.safetensors", "scheduler/scheduler_config.json"]
    wanted += ["text_encoder/config.json", "text_encoder/model.safetensors"]
    wanted += ["tokenizer/merges.txt", "tokenizer/vocab.json"]
    twins = [f"unet/{model}{end}" for end in (".bin", ".fp16.safetensors", ".non_ema.safetensors")]
    twins += ["v1-5-pruned.safetensors", "v1-5-pruned.ckpt", "unet/onnx/config.json"]
    assert sorted(select([*wanted, *twins])) == sorted(wanted)
    other = ["vae_1_0/config.json", f"vae_1_0/{model}.safetensors"]
    parts = ["unet", "vae", "scheduler", "text_encoder", "tokenizer"]
    assert sorted(select([*wanted, *other], components=parts)) == sorted(wanted)


@pytest.mark.parametrize(
    ("there", "index", "weights"),
    [
        (["model.safetensors", *shards("model", ".safetensors")], None, ["model.safetensors"]),
        (["model.fp16.safetensors"], None, ["model.fp16.safetensors"]),
        (["model.non_ema.safetensors", "consolidated.safetensors", "lora.safetensors"], None, []),
        (
            [*shards("model", ".fp16.safetensors"), "model.safetensors.index.fp16.json"],
            "model.safetensors.index.fp16.json",
            shards("model", ".fp16.safetensors"),
        ),
        (
            [*shards("model", ".safetensors"), *shards("model", ".fp16.safetensors")],
            None,
            shards("model", ".safetensors"),
        ),
    ],
)
def test_selection_takes_one_set_of_weights(
    there: list[str], index: str | None, weights: list[str]
) -> None:
    assert one_set(there) == (index, weights)


def test_selection_takes_voices_and_parts_in_folders() -> None:
    voices = ["speaker_embeddings/v2/en_speaker_1_fine_prompt.npy"]
    pooling = ["1_Pooling/config.json", "modules.json"]
    wanted = ["config.json", "model.safetensors", *voices, *pooling]
    assert sorted(select([*wanted, "text_2.pt", "samples/a.wav"])) == sorted(wanted)


@pytest.mark.parametrize(
    ("paths", "why"),
    [
        (["model-q4.gguf", "README.md"], "GGUF"),
        (["README.md", "onnx/model.onnx", "config.json"], "ONNX"),
        ([*TEXTS, "tf_model.h5"], "TensorFlow"),
        ([*TEXTS, "flax_model.msgpack"], "Flax"),
        (["data/train-0.parquet", "README.md"], "no model"),
        (["README.md", "sd-base.safetensors", "sd-refiner.safetensors"], "for other programs"),
        ([*TEXTS, "pytorch_model.bin"], "pickles only"),
        (["config.json", "pytorch_model.bin", "text_2.pt", "speaker_embeddings/a.npy"], "pickles"),
        (["adapter_config.json", "adapter_model.bin"], "adapter"),
        (["README.md"], "no safetensors"),
        ([], "no safetensors"),
    ],
)
def test_selection_of_nothing_is_refused(paths: list[str], why: str) -> None:
    with pytest.raises(BadFiles, match=why):
        select(paths)


@pytest.mark.parametrize("end", [".py", ".pkl", ".BIN", ".md.py"])
def test_selection_takes_no_code_named_as_a_licence(end: str) -> None:
    wanted = [*TEXTS, "LICENSE", "LICENSE.txt", "README.md", "model.safetensors"]
    assert sorted(select([*wanted, f"LICENSE{end}", f"README.md{end}"])) == sorted(wanted)


def test_selection_include_never_takes_code_or_pickles() -> None:
    paths = ["config.json", "model.safetensors", "modeling.py", "pytorch_model.BIN", "a/b.json"]
    assert select(paths, ["*"]) == ["a/b.json", "config.json", "model.safetensors"]
    assert select(paths, ["*.json"]) == ["a/b.json", "config.json"]
    for pattern in ("*.py", "*.BIN", "original"):
        with pytest.raises(BadFiles, match="--include"):
            select(paths, [pattern])


INDEX = "model.safetensors.index.json"


def test_selection_takes_the_shards_that_the_index_names_and_no_others() -> None:
    named, stray = shards("model", ".safetensors"), shards("model", ".safetensors", 3)
    there = [*TEXTS, INDEX, *named, *stray, "original/consolidated.00.pth", "metal/model.bin"]
    assert indices(there) == [INDEX]
    chosen = select(there, shards={INDEX: named})
    assert sorted(chosen) == sorted([*TEXTS, INDEX, *named])


def test_selection_takes_shards_of_any_name_that_the_index_has() -> None:
    named = ["part-a.safetensors", "part-b.safetensors"]
    assert select([*TEXTS, INDEX, *named], shards={INDEX: named}) == [*TEXTS, INDEX, *named]


def test_selection_without_a_shard_that_the_index_names_is_refused() -> None:
    named = shards("model", ".safetensors", 3)
    with pytest.raises(BadFiles, match=rf"names {named[0]} and 1 more, which the repository lacks"):
        select([*TEXTS, INDEX, named[1]], shards={INDEX: named})
    with pytest.raises(BadFiles, match="their index is missing"):
        select([*TEXTS, *named], shards={})


def test_selection_of_whole_weights_needs_no_index_of_shards() -> None:
    there = [*TEXTS, INDEX, *shards("model", ".safetensors"), "model.safetensors"]
    assert indices(there) == []
    assert select(there, shards={}) == [*TEXTS, "model.safetensors"]


def test_selection_of_a_pipeline_takes_one_precision_for_each_part() -> None:
    """Parts of half precision only, of both, and in shards of half precision."""
    fp16 = "diffusion_pytorch_model.safetensors.index.fp16.json"
    unet = shards("diffusion_pytorch_model", ".fp16.safetensors")
    wanted = ["model_index.json", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
    wanted += ["text_encoder/config.json", "text_encoder/model.fp16.safetensors"]
    wanted += ["unet/config.json", f"unet/{fp16}", *(f"unet/{name}" for name in unet)]
    parts = ["unet", "vae", "text_encoder"]
    there = [*wanted, "vae/diffusion_pytorch_model.fp16.safetensors"]
    assert indices(there, parts) == [f"unet/{fp16}"]
    chosen = select(there, components=parts, shards={f"unet/{fp16}": unet})
    assert sorted(chosen) == sorted(wanted)


def test_selection_of_a_pipeline_whose_part_has_pickles_only_is_refused() -> None:
    there = ["model_index.json", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
    there += ["unet/config.json", "unet/diffusion_pytorch_model.bin", "tokenizer/vocab.json"]
    with pytest.raises(BadFiles, match="component unet has no safetensors"):
        select(there, components=["unet", "vae", "tokenizer"], shards={})


def test_selection_takes_templates_settings_and_processors() -> None:
    wanted = [*TEXTS, "chat_template.jinja", "additional_chat_templates/tool_use.jinja"]
    wanted += ["preprocessor_config.json", "processor_config.json", "special_tokens_map.json"]
    wanted += [
        "source.spm",
        "tokenizer.model",
        "model.safetensors",
        "1_Pooling/config.json",
        "modules.json",
    ]
    assert sorted(select([*wanted, "chat_template.py"], shards={})) == sorted(wanted)


def test_selection_of_an_adapter_leaves_what_training_left() -> None:
    adapter = ["adapter_config.json", "adapter_model.safetensors", "README.md"]
    rest = ["optimizer.pt", "checkpoint-5/adapter_model.safetensors", "tokenizer.json", "run.py"]
    assert select([*adapter, *rest]) == adapter
    assert select(["style.safetensors", "README.md", "a.png"]) == ["style.safetensors", "README.md"]
