"""Inspection of folders: refusals, and the manifests of those that are taken."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from model_store.errors import BadFiles
from model_store.inspection import inspect
from model_store.kinds import UPSTREAM
from model_store.manifest import read_manifest, write_manifest
from model_store.store import ModelStore
from model_store.verification import differences
from tests.support.model_folders import LLAMA, llama, pipeline, sharded, write


def edited(**config: object) -> Callable[[Path], None]:
    return lambda folder: write(llama(folder) / "config.json", {**LLAMA, **config})


def with_text(name: str, text: object) -> Callable[[Path], None]:
    return lambda folder: write(llama(folder) / name, text)


def without(name: str, make: Callable[[Path], Path]) -> Callable[[Path], None]:
    return lambda folder: (make(folder) / name).unlink()


def lying_shard(folder: Path) -> None:
    path = sharded(folder) / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def shard_behind_a_dot(folder: Path) -> None:
    sharded(folder, x="../model.safetensors")
    llama(folder.parent)


def pickles_only(folder: Path) -> None:
    (llama(folder) / "model.safetensors").rename(folder / "pytorch_model.bin")


def pickled_component(folder: Path) -> None:
    weights = pipeline(folder) / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


def swollen_component(folder: Path) -> None:
    write(pipeline(folder) / "unet/config.json", {"num_layers": 2})


def lying_part(folder: Path) -> None:
    write(llama(folder) / "modules.json", [])
    write(folder / "2_Dense/config.json", {})
    (folder / "2_Dense/model.safetensors").write_bytes(b"\xff" * 64)


def index_beside_the_whole(folder: Path) -> None:
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    write(pipeline(folder) / index, {"weight_map": {"x": "../../secret.safetensors"}})


def empty_map(folder: Path) -> None:
    write(sharded(folder) / "model.safetensors.index.json", {"weight_map": {}})


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a shard that lies": (lying_shard, "not a whole safetensors"),
    "a shard that is missing": (
        without("model-00002-of-00002.safetensors", sharded),
        "shard .* is missing",
    ),
    "shards without index": (without("model.safetensors.index.json", sharded), "index is missing"),
    "an empty index": (empty_map, "no weight_map"),
    "an index out of the folder": (shard_behind_a_dot, "cannot be taken"),
    "an absolute index": (lambda folder: sharded(folder, x="/etc/passwd"), "cannot be taken"),
    "an index into a folder": (lambda folder: sharded(folder, x="a/b.safetensors"), "points out"),
    "an index to a pickle": (lambda folder: sharded(folder, x="pytorch_model.bin"), "pickle"),
    "a tensor in no shard": (
        lambda folder: sharded(folder, x="model-00001-of-00002.safetensors"),
        "do not hold, x",
    ),
    "a part that lies": (lying_part, "not a whole safetensors"),
    "an index beside whole weights": (index_beside_the_whole, "cannot be taken"),
    "pickles only": (pickles_only, "pickles"),
    "no weights": (without("model.safetensors", llama), "no weights"),
    "no config": (without("config.json", llama), r"no config\.json"),
    "code": (edited(auto_map={"AutoModel": "modeling.Evil"}), "code of its own"),
    "code inside": (edited(text_config={"auto_map": {"AutoConfig": "x.Y"}}), "code of its own"),
    "code deep inside": (edited(a={"b": [{"auto_map": {"AutoConfig": "x.Y"}}]}), "code of its own"),
    "code of the tokenizer": (
        with_text("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["x.Y", None]}}),
        "code of its own",
    ),
    "a config that is no JSON": (with_text("config.json", "{"), "not valid JSON"),
    "a config that is deep": (with_text("config.json", "[" * 100_000), "not valid JSON"),
    "a config that is a list": (with_text("config.json", []), "JSON object"),
    "a tokenizer that is no JSON": (with_text("tokenizer.json", "{'a': 1}"), "not valid JSON"),
    "a tokenizer config that is a list": (with_text("tokenizer_config.json", []), "JSON object"),
    "too many layers": (edited(num_hidden_layers=3), "claims 3 layers; the weights hold 2"),
    "too many inside": (edited(text_config={"num_hidden_layers": 9}), "claims 9 layers"),
    "too many deep inside": (edited(a={"b": {"num_hidden_layers": 3}}), "claims 3 layers"),
    "too many by another name": (edited(n_layers=3), "claims 3 layers"),
    "too many words": (edited(vocab_size=65), "vocab_size of 65"),
    "too wide": (edited(hidden_size=10**9), "hidden_size"),
    "an adapter": (with_text("adapter_config.json", {}), "adapter"),
    "unknown": (edited(architectures=["EvilForCausalLM"]), "EvilForCausalLM"),
    "architectures that are no list": (edited(architectures={"0": "LlamaForCausalLM"}), "None"),
    "architectures that are no text": (edited(architectures=[["LlamaForCausalLM"]]), "None"),
    "no architectures": (edited(architectures=[]), "None"),
    "GGUF": (lambda folder: write(folder / "m.gguf", ""), "GGUF"),
    "parts without a config": (lambda folder: write(folder / "modules.json", []), "missing"),
    "a pickled component": (pickled_component, "pickles"),
    "a swollen component": (swollen_component, "claims 2 layers"),
    "a missing component": (lambda f: pipeline(f, vae=["diffusers", "VAE"]), "vae is missing"),
    "a foreign component": (lambda f: pipeline(f, unet=["os", "system"]), "code of its own"),
    "a component elsewhere": (lambda f: pipeline(f, **{"../x": ["diffusers", "X"]}), "taken"),
    "a list as component": (lambda f: pipeline(f, unet=[["x"], "X"]), "code of its own"),
    "a custom pipeline": (lambda f: pipeline(f, _class_name=["pipeline", "Evil"]), "code of its"),
    "an upstream of no kind": (edited(model_type=UPSTREAM, kind=["text"]), "does one of"),
    "another pipeline": (lambda f: pipeline(f, _class_name="AudioLDM2Pipeline"), "make images"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_inspection_refuses_what_cannot_run(tmp_path: Path, case: str) -> None:
    make, why = REFUSED[case]
    folder = tmp_path / "files"
    folder.mkdir()
    make(folder)
    with pytest.raises(BadFiles, match=why) as caught:
        inspect(folder)
    assert str(tmp_path) not in caught.value.message


def test_inspection_of_a_text_model(tmp_path: Path) -> None:
    found = inspect(llama(tmp_path))
    assert (found.kind, found.engine, found.architecture) == ("text", "text", "LlamaForCausalLM")
    assert (found.model_type, found.dtype, found.max_context) == ("llama", "float16", 128)
    assert found.parameters == 64 * 8 + 2 * 16 * 8
    assert found.weight_bytes == 2 * found.parameters
    assert found.kv_bytes_per_token == 2 * 2 * 2 * 2 * 2  # k and v, layers, heads, width, bytes
    assert found.vocab_size == 64
    assert found.capabilities == ("completion", "chat")


@pytest.mark.parametrize("told", [[], {"a": 1}, 7, None])
def test_inspection_takes_a_model_type_that_is_no_text_for_none(
    tmp_path: Path, told: object
) -> None:
    edited(model_type=told)(tmp_path)
    assert inspect(tmp_path).model_type is None


def test_inspection_counts_layers_by_any_name(tmp_path: Path) -> None:
    edited(n_layers=2, a={"b": [{"num_decoder_layers": 2}]})(tmp_path)
    assert inspect(tmp_path).kind == "text"


def test_inspection_knows_the_names_of_other_families(tmp_path: Path) -> None:
    config = {"architectures": ["MptForCausalLM"], "model_type": "mpt", "vocab_size": 64}
    sizes = {"d_model": 8, "n_heads": 4, "n_layers": 2, "max_seq_len": 77}
    write(llama(tmp_path) / "config.json", {**config, **sizes})
    found = inspect(tmp_path)
    assert (found.max_context, found.kv_bytes_per_token) == (77, 2 * 2 * 4 * 2 * 2)


def test_inspection_of_a_model_without_attention_has_no_kv_cache(tmp_path: Path) -> None:
    config = {"architectures": ["Mamba2ForCausalLM"], "model_type": "mamba2", "vocab_size": 64}
    sizes = {"hidden_size": 8, "num_heads": 4, "head_dim": 4, "num_hidden_layers": 2}
    write(llama(tmp_path) / "config.json", {**config, **sizes})
    assert inspect(tmp_path).kv_bytes_per_token is None


def test_inspection_counts_the_parts_of_an_embedding_model(tmp_path: Path) -> None:
    whole = inspect(llama(tmp_path)).weight_bytes
    write(tmp_path / "modules.json", [])
    llama(tmp_path / "2_Dense")
    found = inspect(tmp_path)
    assert (found.kind, found.weight_bytes) == ("embedding", 2 * whole)
    assert found.capabilities == ("embedding",)


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [({"query": "Find: ", "document": "\u00e9"}, 6), ({"query": 7}, 0), ([], 0), (None, 0)],
)
def test_inspection_reads_the_longest_prompt_of_an_embedding_model(
    tmp_path: Path, prompts: object, expected: int
) -> None:
    write(llama(tmp_path) / "modules.json", [])
    write(tmp_path / "config_sentence_transformers.json", {"prompts": prompts})
    assert inspect(tmp_path).longest_prompt == expected


def test_inspection_knows_rerankers_by_their_one_label(tmp_path: Path) -> None:
    config = {"architectures": ["BertForSequenceClassification"], "model_type": "bert"}
    write(llama(tmp_path) / "config.json", {**config, "id2label": {"0": "LABEL_0"}})
    found = inspect(tmp_path)
    assert (found.kind, found.capabilities) == ("embedding", ("rerank",))
    for labels in ({}, {"num_labels": 3}, {"id2label": {"0": "bad", "1": "good"}}):
        write(tmp_path / "config.json", {**config, **labels})
        with pytest.raises(BadFiles, match="more than one label"):
            inspect(tmp_path)
    write(tmp_path / "config_sentence_transformers.json", {"model_type": "CrossEncoder"})
    assert inspect(tmp_path).capabilities == ("rerank",)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("BarkModel", "speech"), ("WhisperForConditionalGeneration", "transcription")],
)
def test_inspection_of_audio_models(tmp_path: Path, name: str, kind: str) -> None:
    edited(architectures=[name])(tmp_path)
    found = inspect(tmp_path)
    assert (found.kind, found.engine) == (kind, kind)


def test_inspection_of_shards_is_that_of_the_whole(tmp_path: Path) -> None:
    assert inspect(sharded(tmp_path / "a")) == inspect(llama(tmp_path / "b"))


def test_inspection_does_not_count_twins_twice(tmp_path: Path) -> None:
    whole = inspect(llama(tmp_path))
    weights = (tmp_path / "model.safetensors").read_bytes()
    for twin in ("model.fp16.safetensors", "consolidated.safetensors"):
        (tmp_path / twin).write_bytes(weights)
    assert inspect(tmp_path) == whole


def test_inspection_of_a_config_with_the_text_model_inside(tmp_path: Path) -> None:
    inner = {name: LLAMA[name] for name in ("vocab_size", "num_hidden_layers", "hidden_size")}
    inner |= {"num_attention_heads": 2, "max_position_embeddings": 99}
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"}
    write(llama(tmp_path) / "config.json", {**config, "text_config": inner})
    found = inspect(tmp_path)
    assert (found.kind, found.max_context, found.vocab_size) == ("text", 99, 64)
    assert found.kv_bytes_per_token == 2 * 2 * 2 * 4 * 2


def test_inspection_of_a_pipeline(tmp_path: Path) -> None:
    found = inspect(pipeline(tmp_path))
    assert (found.kind, found.architecture) == ("image", "StableDiffusionPipeline")
    assert (found.parameters, found.dtype) == (32, "float32")


def test_inspection_takes_odd_but_harmless_files(tmp_path: Path) -> None:
    write(llama(tmp_path) / "vocab.json", {"auto_map": 7})
    write(tmp_path / "added_tokens.json", [])
    write(tmp_path / "config.json", json.dumps({**LLAMA, "limit": float("inf"), "model_type": 7}))
    write(tmp_path / "onnx/config.json", "{")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/x.json").write_bytes(struct.pack("<Q", 1))
    assert inspect(tmp_path).model_type is None


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        ({"model": {"vocab": {"a": 0, "long": 1}}, "added_tokens": [{"content": "<end>"}]}, 5),
        ({"model": {"vocab": [["a", 0.0], ["longest", -1.5]]}, "added_tokens": []}, 7),
        ({"model": {"vocab": [7, [], [3]]}, "added_tokens": [7, {}]}, None),
        ({"model": 3, "added_tokens": None}, None),
        ([], None),
        (None, None),
    ],
)
def test_inspection_reads_the_longest_token_from_the_tokenizer(
    tmp_path: Path, tokenizer: object, expected: int | None
) -> None:
    folder = llama(tmp_path / "m")
    if tokenizer is not None:
        write(folder / "tokenizer.json", tokenizer)
    assert inspect(folder).longest_token == expected


CARD = """---
license: apache-2.0
language: [en, no, de]
tags: &a [x, *a]
---
# A model
"""


@pytest.mark.parametrize(
    ("card", "licence", "languages"),
    [
        (CARD.replace("tags: &a [x, *a]\n", ""), "apache-2.0", ("en", "no", "de")),
        ("---\nlicense: other\nlicense_name: llama3\nlanguage: en\n---\n", "llama3", ("en",)),
        ("---\nlicense: [mit, gpl]\nlanguage: {en: 1}\n---", "mit", ()),
        ("---\r\nlicense: mit\r\n---\r\n", "mit", ()),
        ('---\nlicense: "\\e[2Jmit"\nlanguage: [../x, 7, en-US]\n---\n', None, ("en-US",)),
        ("---\nlicense: {{\n---\n", None, ()),
        ("---\n" + "[" * 30_000 + "\n---\n", None, ()),
        ("---\nlicense: !!python/object/apply:os.mkdir [executed]\n---\n", None, ()),
        ("---\n- license\n---\n", None, ()),
        ("license: mit\n", None, ()),
        ("", None, ()),
    ],
)
def test_inspection_reads_licence_and_languages_from_the_card(
    tmp_path: Path, card: str, licence: str | None, languages: tuple[str, ...]
) -> None:
    folder = llama(tmp_path / "m")
    (folder / "README.md").write_bytes(card.encode())
    found = inspect(folder)
    assert (found.license, found.languages) == (licence, languages)
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("\n   Apache License\n   Version 2.0, January 2004\n", "apache-2.0"),
        ("MIT License\n\nCopyright (c) 2024 Somebody\n", "mit"),
        ("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n", "llama3.1"),
        ("All rights reserved.", None),
    ],
)
def test_inspection_knows_licences_by_their_first_words(
    tmp_path: Path, text: str, licence: str | None
) -> None:
    folder = llama(tmp_path / "m")
    write(folder / "LICENSE.txt", text)
    assert inspect(folder).license == licence
    write(folder / "README.md", "---\nlicense: llama2\n---\n")
    assert inspect(folder).license == "llama2"


@pytest.mark.parametrize(
    ("template", "more"),
    [
        ("{{ messages }}", ()),
        ("{% if tools %}{{ tools }}{% endif %}", ("tools",)),
        ("{% if enable_thinking %}<think>{% endif %}", ("reasoning",)),
        ("{{ message.reasoning_content }}{{ tools }}", ("tools", "reasoning")),
        ("{{ 'He was thinking of tooling.' }}", ()),
    ],
)
def test_inspection_tells_from_the_template_what_a_chat_model_can(
    tmp_path: Path, template: str, more: tuple[str, ...]
) -> None:
    folder = llama(tmp_path / "m")
    write(folder / "chat_template.jinja", template)
    (folder / "tokenizer_config.json").unlink()
    assert inspect(folder).capabilities == ("completion", "chat", *more)


def test_inspection_is_repeated_by_a_check_where_an_older_version_took_the_model_in(
    tmp_path: Path,
) -> None:
    store = ModelStore(tmp_path / "models")
    made = store.import_folder(llama(tmp_path / "m", dtype="bfloat16"), "old")
    place = store.path("old").parent
    older = {"facts": 0, "config_dtype": None, "capabilities": ()}
    write_manifest(place, msgspec.structs.replace(made, **older))
    assert differences(store, ["old"]) == {"old": []}
    assert read_manifest(place) == made


@pytest.mark.parametrize(
    ("architecture", "files", "languages"),
    [
        ("WhisperForConditionalGeneration", {}, ()),
        (
            "WhisperForConditionalGeneration",
            {"generation_config.json": {"lang_to_id": {"<|en|>": 1, "<|de|>": 2}}},
            ("de", "en"),
        ),
        (
            "WhisperForConditionalGeneration",
            {"generation_config.json": {"is_multilingual": False}},
            ("en",),
        ),
        (
            "BarkModel",
            {"speaker_embeddings_path.json": {"v2/en_speaker_1": {}, "de_speaker_0": {}, "x": {}}},
            ("de", "en"),
        ),
    ],
)
def test_inspection_tells_the_languages_of_sound_models(
    tmp_path: Path, architecture: str, files: dict[str, object], languages: tuple[str, ...]
) -> None:
    edited(architectures=[architecture])(tmp_path)
    for name, content in files.items():
        write(tmp_path / name, content)
    assert inspect(tmp_path).languages == languages
