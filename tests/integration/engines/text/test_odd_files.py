"""Text models as people publish them: the store tells of odd files what the engine makes of them,
and both refuse what no library reads, by the name of its field."""

import inspect as inspect_module
import io
import json
import math
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceTrainer

from bitinglip.scheduling.placement.estimate import own_dtype
from model_store.errors import BadFiles
from model_store.inspection import inspect
from model_store.manifest import Manifest
from tests.support.models.text import VOCAB, make_tiny_model
from tests.support.text_harness import distance_from_library, job, load, run
from workers.engines.base import Refused
from workers.engines.library_config import library_config
from workers.engines.text.loading import max_positions
from workers.protocol import TextDone

WEIGHTS = "model.safetensors"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Provide models with different heads: the llama's is its embedding, the qwen3 has its own."""
    root = tmp_path_factory.mktemp("models")
    return {family: make_tiny_model(family, root / family) for family in ("llama", "qwen3")}


def copied(source: Path, folder: Path, *without: str) -> Path:
    folder.mkdir(exist_ok=True)
    for path in source.iterdir():
        if path.name not in without:
            (folder / path.name).symlink_to(path)
    return folder


def with_json(source: Path, folder: Path, name: str, change: Callable[[Any], Any]) -> Path:
    """Copy a model with a change to one of its JSON files."""
    copied(source, folder, name)
    (folder / name).write_text(json.dumps(change(json.loads((source / name).read_text()))))
    return folder


def with_config(source: Path, folder: Path, **fields: Any) -> Path:
    """Copy a model without the fields of its config that these stand for."""
    dropped = ("dtype", "torch_dtype", "rope_parameters", "rope_scaling", "rope_theta")
    return with_json(
        source,
        folder,
        "config.json",
        lambda config: {k: v for k, v in config.items() if k not in dropped} | fields,
    )


def with_weights(
    source: Path,
    folder: Path,
    change: Callable[[Weights], Weights] = dict,
    name: str = WEIGHTS,
    metadata: dict[str, str] | None = None,
) -> Path:
    copied(source, folder, WEIGHTS)
    save_file(change(load_file(source / WEIGHTS)), folder / name, metadata=metadata)
    return folder


def halved(weights: Weights) -> Weights:
    return {name: tensor.half() for name, tensor in weights.items()}


def answer(path: Path, **spec: Any) -> TextDone:
    engine, _ = load(path, **spec)
    try:
        return run(engine, job("a", max_tokens=8, temperature=0.0, logprobs=0))["a"]
    finally:
        engine.close()


def refusal(path: Path) -> str:
    with pytest.raises(Refused) as caught:
        load(path)
    assert caught.value.code == "MODEL_LOAD_FAILED"
    return caught.value.message


# ---- weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize("metadata", [None, {}, {"format": "mlx"}, {"format": "np", "x": "y"}])
def test_safetensors_load_whatever_their_metadata_says(
    models: dict[str, Path], tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    folder = with_weights(models["llama"], tmp_path / "m", metadata=metadata)
    assert inspect(folder) == inspect(models["llama"])
    assert answer(folder).choices == answer(models["llama"]).choices


def test_tied_weights_in_a_file_with_a_head_of_its_own_and_without(
    models: dict[str, Path], tmp_path: Path
) -> None:
    assert HEAD not in load_file(models["llama"] / WEIGHTS)
    doubled = with_weights(
        models["llama"],
        tmp_path / "doubled",
        lambda weights: {**weights, HEAD: weights[EMBEDDING].clone()},
    )
    for folder in (models["llama"], doubled):
        engine, _ = load(folder)
        end = run(engine, job("a", max_tokens=8, temperature=0.0, logprobs=0))["a"]
        prompt = engine._loaded.tokenizer("one two")["input_ids"]
        engine.close()
        likelier, off = distance_from_library(folder, torch.float32, "cpu", prompt, end)
        assert max(likelier, off) < 1e-4


def test_untied_weights_without_a_head_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    """The library would make one of random numbers."""
    folder = with_weights(
        models["qwen3"],
        tmp_path / "m",
        lambda weights: {name: each for name, each in weights.items() if name != HEAD},
    )
    assert HEAD in refusal(folder)


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "model.bf16.safetensors"])
def test_variant_without_plain_weights_is_loaded(
    models: dict[str, Path], tmp_path: Path, name: str
) -> None:
    folder = with_weights(models["llama"], tmp_path / "m", halved, name)
    assert inspect(folder).dtype == "float16"
    engine, ready = load(folder, dtype=None)
    assert ready.dtype == "float32"  # the config's
    engine.close()
    assert answer(folder, dtype="float32").completion_tokens == 8


def test_variant_in_shards_is_loaded(models: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(models["llama"], tmp_path / "m", WEIGHTS)
    tensors = list(halved(load_file(models["llama"] / WEIGHTS)).items())
    names = [f"model.fp16-0000{number}-of-00002.safetensors" for number in (1, 2)]
    shards = dict(zip(names, (dict(tensors[:5]), dict(tensors[5:])), strict=True))
    for name, shard in shards.items():
        save_file(shard, folder / name)
    listed = {tensor: name for name, shard in shards.items() for tensor in shard}
    index = {"metadata": {}, "weight_map": listed}
    (folder / "model.safetensors.index.fp16.json").write_text(json.dumps(index))
    assert inspect(folder).dtype == "float16"
    assert answer(folder).completion_tokens == 8


# ---- number formats ----------------------------------------------------------------------------

#: the fields of a config, the format of the weights, and what both tell
FORMATS: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"dtype": "bfloat16"}, "bfloat16"),
    "torch_dtype": ({"torch_dtype": "bfloat16"}, "bfloat16"),
    "both": ({"dtype": "bfloat16", "torch_dtype": "float32"}, "bfloat16"),
    "neither": ({}, "float32"),
    "auto": ({"torch_dtype": "auto"}, "float32"),
    "auto by the new name": ({"dtype": "auto"}, "float32"),
    "null": ({"torch_dtype": None}, "float32"),
    "null by the new name": ({"dtype": None}, "float32"),
    "none that there is": ({"dtype": "float7"}, "float32"),
    "a number": ({"torch_dtype": 16}, "float32"),
}


@pytest.mark.parametrize("case", FORMATS)
def test_dtype_of_the_store_is_that_of_the_load(
    models: dict[str, Path], tmp_path: Path, case: str
) -> None:
    fields, expected = FORMATS[case]
    folder = with_config(models["llama"], tmp_path / "m", **fields)
    engine, ready = load(folder, dtype=None)
    engine.close()
    assert (ready.dtype, told(folder)) == (expected, expected)


def test_dtype_of_the_weights_counts_where_no_config_names_one(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """A CPU has no fast products of float16."""
    half = with_weights(models["llama"], tmp_path / "half", halved)
    folder = with_config(half, tmp_path / "m")
    engine, ready = load(folder, dtype=None)
    engine.close()
    assert (ready.dtype, told(folder)) == ("bfloat16", "float16")


def told(folder: Path) -> str | None:
    """Return the format that memory is planned with."""
    found = vars(inspect(folder))
    now = datetime.now(UTC)
    return own_dtype(Manifest(name="m", source="import", created_at=now, **found))


# ---- rotary scalings ---------------------------------------------------------------------------

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
#: the fields of a config whose longest position is 256, and the context that follows
SCALINGS: dict[str, tuple[dict[str, Any], int]] = {
    "by type": ({"rope_scaling": {"type": "linear", "factor": 2}}, 256),
    "by rope_type": ({"rope_scaling": LLAMA3}, 256),
    "by both": ({"rope_scaling": {"type": "dynamic", "rope_type": "linear", "factor": 2.0}}, 256),
    "by neither": ({"rope_scaling": {"factor": 2.0}}, 256),
    "null": ({"rope_scaling": None, "rope_parameters": None}, 256),
    "empty": ({"rope_scaling": {}}, 256),
    "rope_parameters": ({"rope_parameters": {**LLAMA3, "rope_theta": 1e4}}, 256),
    "both keys": (
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": LLAMA3},
        256,
    ),
    "dynamic": ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, 256),
    "yarn": ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, 1024),
    "yarn that says from where": (
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "rope_theta": 1e4,
            }
        },
        256,
    ),
    "yarn beyond what the config says": (
        {"rope_scaling": {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}},
        512,
    ),
    "longrope": (
        {
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0] * 8,
                "long_factor": [2.0] * 8,
                "factor": 2.0,
                "original_max_position_embeddings": 128,
            }
        },
        128,
    ),
}


@pytest.mark.parametrize("case", SCALINGS)
def test_context_of_the_store_is_that_of_the_load(
    models: dict[str, Path], tmp_path: Path, case: str
) -> None:
    fields, expected = SCALINGS[case]
    folder = with_config(models["llama"], tmp_path / "m", **fields)
    loaded = max_positions(library_config(folder))
    assert (loaded, inspect(folder).max_context) == (expected, expected)


def test_context_that_a_scaling_stretches_is_computed(
    models: dict[str, Path], tmp_path: Path
) -> None:
    fields, expected = SCALINGS["yarn"]
    engine, ready = load(with_config(models["llama"], tmp_path / "m", **fields))
    assert ready.max_context == expected
    end = run(engine, job("a", prompt="word " * 150, max_tokens=200))["a"]
    engine.close()
    assert end.prompt_tokens + end.completion_tokens > 256


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"rope_scaling": {"type": "magic", "factor": 2.0}}, "rope_scaling"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor"),
        ({"rope_theta": "big", "rope_scaling": {"factor": 1.0}}, "rope_theta"),
        ({"rope_theta": "big"}, "rope_theta"),
    ],
)
def test_context_by_a_scaling_that_no_library_reads_is_refused_by_its_key(
    models: dict[str, Path], tmp_path: Path, fields: dict[str, Any], named: str
) -> None:
    folder = with_config(models["llama"], tmp_path / "m", **fields)
    with pytest.raises(BadFiles, match=named):
        inspect(folder)
    refusal(folder)


# ---- vocabularies ------------------------------------------------------------------------------


def test_padded_vocabulary_gives_text_and_logprobs_for_every_id(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """The rows of the embedding beyond the tokenizer's are those that this model likes most."""

    def longing(weights: Weights) -> Weights:
        head = weights[HEAD].clone()
        head[VOCAB - 16 :] *= 3
        return {**weights, HEAD: head}

    folder = with_weights(models["qwen3"], tmp_path / "m", longing)
    engine, _ = load(folder)
    assert len(engine._loaded.tokenizer) < VOCAB
    options: dict[str, Any] = {"temperature": 2.0, "logprobs": 5, "stop": ("zzzz", "\n\n\n\n")}
    jobs = [job(str(seed), max_tokens=200, seed=seed, **options) for seed in range(10)]
    ends = run(engine, *jobs)
    engine.close()
    assert len(ends) == len(jobs)
    told = [one for end in ends.values() for one in end.choices[0].logprobs]
    assert any(one.id >= VOCAB - 16 for one in told)
    assert all(one.logprob is not None and math.isfinite(one.logprob) for one in told)
    assert all(one.token == "" for one in told if one.id >= VOCAB - 16)


def test_vocabulary_of_sentencepiece_alone_is_read(models: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(models["llama"], tmp_path / "m", "tokenizer.json", "tokenizer_config.json")
    trained = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter((inspect_module.__doc__ or "").splitlines()),
        model_writer=trained,
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(trained.getvalue())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    assert answer(folder).completion_tokens == 8


# ---- settings of the generation ----------------------------------------------------------------

SETTINGS: dict[str, dict[str, Any]] = {
    "nulls": {"top_k": None, "top_p": None, "eos_token_id": None, "pad_token_id": None},
    "zeros": {"top_k": 0, "temperature": 0, "do_sample": True, "top_p": 0},
    "a list of ends": {"eos_token_id": [1, 5]},
    "an empty list of ends": {"eos_token_id": []},
    "a short length": {"max_length": 20, "max_new_tokens": 3},
    "unknown keys": {"flavour": "mild", "bos_token_id": None},
    "one temperature without sampling": {"do_sample": False, "temperature": 0.6, "top_p": 0.9},
    "settings of beams": {"num_beams": 4, "num_return_sequences": 2, "early_stopping": True},
}


@pytest.mark.parametrize("case", SETTINGS)
def test_odd_generation_settings_cut_no_answer(
    models: dict[str, Path], tmp_path: Path, case: str
) -> None:
    folder = copied(models["llama"], tmp_path / "m", "generation_config.json")
    (folder / "generation_config.json").write_text(json.dumps(SETTINGS[case]))
    inspect(folder)
    engine, _ = load(folder)
    end = run(engine, job("a", max_tokens=60))["a"]
    engine.close()
    assert end.completion_tokens == 60


def test_odd_generation_settings_with_a_list_of_ends_end_at_each(
    models: dict[str, Path], tmp_path: Path
) -> None:
    folder = copied(models["llama"], tmp_path / "m", "generation_config.json")
    ends = {"eos_token_id": [7, 9]}
    (folder / "generation_config.json").write_text(json.dumps(ends))
    engine, _ = load(folder)
    assert engine._loaded.eos_ids >= {7, 9}
    engine.close()
