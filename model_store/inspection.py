"""Inspects a folder in Hugging Face layout: what model it is, or why it is refused.

Everything that can be told from files alone is told here, before any library opens them: code,
pickles, indices that point elsewhere, headers that lie, configs that claim more than the weights.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model_store.chat_templates import has_template, switches
from model_store.errors import BadFiles
from model_store.headers import DTYPES, Tensor, read_header
from model_store.image_size import own_side
from model_store.kinds import (
    FAKE,
    architecture_of,
    is_cross_encoder,
    kind_of,
    known_names,
    read_any_json,
    read_json,
)
from model_store.manifest import EMBEDDING, RERANK
from model_store.names import check_file, check_files
from model_store.selection import (
    INDEX,
    PICKLES,
    PICKLES_ALLOWED,
    WEIGHTS,
    numbered_parts,
    one_set,
    required,
)
from model_store.tokenizers import longest_token

_CONTEXT_FIELDS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_sequence_length",
    "seq_length",
    "max_seq_len",
)
#: of a decoder first: in a model with both stacks the encoder's tokens are not in the cache
_DECODER_LAYER_FIELDS = (
    "decoder_layers",
    "num_decoder_layers",
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
)
_LAYER_FIELDS = (*_DECODER_LAYER_FIELDS, "encoder_layers", "num_encoder_layers")
#: not "num_heads": those of Mamba2 and xLSTM are no attention, and keep no keys and values
_HEAD_FIELDS = (
    "decoder_attention_heads",
    "num_attention_heads",
    "n_head",
    "n_heads",
    "attention_heads",
)
_WIDTH_FIELDS = ("hidden_size", "n_embd", "d_model")
_CACHED_STAGES = ("semantic_config", "coarse_acoustics_config")  #: of Bark
_MOST_SPEAKERS = 10_000
_VOICE_INDEX = "speaker_embeddings_path.json"
_LATENTS_PER_TOKEN = 4  #: image transformers read patches of two by two
_CODE = "This model needs code of its own to run, which is never loaded."


@dataclass
class Inspection:
    """The facts of a model that its files alone tell."""

    kind: str
    engine: str
    architecture: str | None = None
    model_type: str | None = None
    max_context: int | None = None
    dtype: str | None = None
    parameters: int = 0
    weight_bytes: int = 0
    vocab_size: int | None = None
    longest_token: int | None = None
    has_chat_template: bool = False
    template_switches: tuple[str, ...] = ()
    kv_bytes_per_token: int | None = None
    cache_positions: int = 0
    capabilities: tuple[str, ...] = field(default_factory=tuple)
    components: dict[str, int] = field(default_factory=dict)
    voices: tuple[str, ...] = ()
    denoiser_width: int = 0
    decoder_width: int = 0
    image_side: int = 0


def inspect(folder: Path) -> Inspection:
    """Inspect a folder. Raises BadFiles if it is not a model that may be taken in."""
    kind = inspect_texts(folder)
    if kind == "image":
        return _inspect_pipeline(folder)
    config = read_json(folder / "config.json")
    if config.get("model_type") == FAKE:
        chat = ("completion", "chat")
        return Inspection(
            "text", "fake", model_type=FAKE, has_chat_template=True, capabilities=chat
        )
    return _inspect_transformer(folder, kind, config)


def inspect_texts(folder: Path) -> str:
    """Check everything but the weights and return the kind. Raises BadFiles."""
    paths = model_files(folder)
    for path in required(paths):
        if path.endswith(".json") and _needs_code(read_any_json(folder / path)):
            raise BadFiles(_CODE)
    # Each index, also beside whole weights: diffusers then reads it and not them.
    for path in paths:
        if f"{WEIGHTS}.index." in path:
            _weight_map(folder / path)
    kind = kind_of(folder)
    if kind == "image":
        _check_index(folder)
    return kind


def _needs_code(value: Any) -> bool:
    """Find ``auto_map`` in a config or in one inside it; in a vocabulary it is only a word."""
    return any(
        "auto_map" in part and not isinstance(part["auto_map"], int) for part in _objects(value)
    )


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON value at every depth, by a stack: files may nest to the limit."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)


def components(index: dict[str, Any]) -> list[str]:
    """Return the folders that a pipeline's index names. Raises BadFiles for foreign code."""
    found = []
    known = {"diffusers", "transformers"} | known_names("pipeline modules")
    for part, value in index.items():
        if isinstance(value, list) and not part.startswith("_"):
            library = value[0] if value else None
            if library is None:
                continue  # a component that this pipeline goes without
            if not isinstance(library, str) or library not in known or "/" in check_file(part):
                raise BadFiles(_CODE)
            found.append(part)
    return found


def _check_index(folder: Path) -> None:
    index = read_json(folder / INDEX)
    name = index.get("_class_name")
    if not isinstance(name, str):
        raise BadFiles(_CODE)
    if name not in known_names("image"):
        raise BadFiles(f"The pipeline '{name[:80]}' does not make images from text.")
    for part in components(index):
        if not (folder / part).is_dir():
            raise BadFiles(f"The pipeline's component {part[:80]} is missing.")


def _inspect_pipeline(folder: Path) -> Inspection:
    index = read_json(folder / INDEX)
    model = Inspection("image", "image", architecture=index["_class_name"])
    model.capabilities = ("text-to-image",)
    model.image_side = own_side(folder)
    tensors: dict[str, Tensor] = {}
    for part in components(index):
        found = weights(folder / part)
        if (folder / part / "config.json").exists():  # of models only, not of tokenizers
            if not found:
                raise _no_weights(folder / part)
            config = read_json(folder / part / "config.json")
            _check_layers(config, found)
            _note_widths(model, part, config)
            model.components[part] = sum(tensor.nbytes for tensor in found.values())
        tensors |= {f"{part}/{name}": tensor for name, tensor in found.items()}
    if not tensors:
        raise BadFiles("There are no safetensors weights in this pipeline.")
    return _with_weights(model, tensors)


def _note_widths(model: Inspection, part: str, config: dict[str, Any]) -> None:
    """Record the widths that decide the memory of activations."""
    channels = config.get("block_out_channels")
    first = channels[0] if isinstance(channels, list) and channels else None
    width = first if isinstance(first, int) and first > 0 else 0
    if part == "vae":
        model.decoder_width = width
    elif part == "unet":
        model.denoiser_width = width
    elif part == "transformer":
        heads = _number(config, "num_attention_heads") or 0
        hidden = _number(config, "hidden_size", "dim", "inner_dim") or heads * (
            _number(config, "attention_head_dim") or 0
        )
        model.denoiser_width = hidden // _LATENTS_PER_TOKEN


def _voices(folder: Path, config: dict[str, Any]) -> tuple[str, ...]:
    """Return a repository's voices: Bark's presets, numbered speakers, or speaker vectors."""
    if (folder / _VOICE_INDEX).is_file():
        index = read_json(folder / _VOICE_INDEX)
        return tuple(sorted(name for name, parts in index.items() if isinstance(parts, dict)))
    speakers = _number(config, "num_speakers") or 1
    if speakers > 1:
        return tuple(f"speaker_{number}" for number in range(min(speakers, _MOST_SPEAKERS)))
    return tuple(sorted(path.stem for path in folder.glob("speaker_embeddings/*.npy")))


def _no_weights(folder: Path) -> BadFiles:
    pickled = any(path.suffix.lower() in PICKLES for path in folder.iterdir())
    if pickled:
        return BadFiles(f"Its weights are pickles, which can run code. {PICKLES_ALLOWED}")
    return BadFiles("Only safetensors are taken, and it has no weights.")


def _inspect_transformer(folder: Path, kind: str, config: dict[str, Any]) -> Inspection:
    tensors = weights(folder)
    if not tensors:
        raise _no_weights(folder)
    for part in numbered_parts(model_files(folder)):
        tensors |= {f"{part}/{name}": tensor for name, tensor in weights(folder / part).items()}
    if kind != "embedding":  # those may use one layer many times
        _check_layers(config, tensors)
    inner = config.get("text_config")
    text: dict[str, Any] = {**config, **inner} if isinstance(inner, dict) else config
    model_type = config.get("model_type")
    found = Inspection(
        kind,
        kind,
        architecture=architecture_of(config),
        model_type=model_type if isinstance(model_type, str) else None,
        max_context=_number(text, *_CONTEXT_FIELDS),
        vocab_size=_number(text, "vocab_size"),
        has_chat_template=has_template(folder),
    )
    if kind == "speech":
        found.voices = _voices(folder, config)
        found.capabilities = ("text-to-speech",)
        stages = [config.get(stage) for stage in _CACHED_STAGES]
        parts = [part for part in stages if isinstance(part, dict)]
        found.kv_bytes_per_token = sum(_stage_bytes(part) for part in parts)
        found.cache_positions = max((_number(part, "block_size") or 0 for part in parts), default=0)
    if kind == "transcription":
        found.capabilities = ("speech-to-text",)
        found.kv_bytes_per_token = _kv_bytes(config)
        # What was heard is kept beside what was written.
        lengths = ("max_source_positions", "max_target_positions")
        found.cache_positions = sum(_number(config, name) or 0 for name in lengths)
    if kind == "embedding":
        found.capabilities = (RERANK if is_cross_encoder(folder, config) else EMBEDDING,)
    if kind == "text":
        _check_widths(text, tensors)
        found.kv_bytes_per_token = _kv_bytes(text)
        found.longest_token = longest_token(folder)
        found.template_switches = switches(folder)
        found.capabilities = ("completion", "chat") if found.has_chat_template else ("completion",)
    return _with_weights(found, tensors)


def weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors that a library would load from one folder; its index is checked."""
    index, names = one_set(path.name for path in folder.iterdir())
    if index is None:
        if any("-of-" in name for name in names):
            raise BadFiles("The weights are in shards, and their index is missing.")
        return {key: t for name in names for key, t in read_header(folder / name).items()}
    listed = _indexed(folder, folder / index)
    shards = {name: read_header(folder / name) for name in sorted(set(listed.values()))}
    missing = [tensor for tensor, name in listed.items() if tensor not in shards[name]]
    if missing:
        raise BadFiles(
            f"The index names tensors that their shards do not hold, {min(missing)[:80]} first."
        )
    return {key: tensor for shard in shards.values() for key, tensor in shard.items()}


def _indexed(folder: Path, index: Path) -> dict[str, str]:
    """Map each tensor to its shard; every shard is a plain name and exists in this folder."""
    listed = _weight_map(index)
    for name in sorted(set(listed.values())):
        if not (folder / name).is_file():
            raise BadFiles(f"The shard {name} is missing.")
    return listed


def _weight_map(index: Path) -> dict[str, str]:
    """Map each tensor to its shard; every shard is a plain name, whether it exists or not."""
    listed = read_json(index).get("weight_map")
    named = isinstance(listed, dict) and all(isinstance(name, str) for name in listed.values())
    if not isinstance(listed, dict) or not listed or not named:
        raise BadFiles(f"{index.name} has no weight_map.")
    for name in sorted(set(listed.values())):
        if "/" in check_file(name) or not name.endswith(WEIGHTS):
            raise BadFiles(f"{index.name} points out of its folder, or to a pickle.")
    return listed


def _check_layers(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Refuse a config with more layers than its weights: the library would build for minutes."""
    stacks: dict[str, set[str]] = {}
    for name in tensors:
        number = re.search(r"(?:^|\.)(\d+)\.", name)
        if number:
            stacks.setdefault(name[: number.start()], set()).add(number[1])
    most = max(map(len, stacks.values()), default=0)
    for part in _objects(config):
        for field_name in _LAYER_FIELDS:
            claimed = _number(part, field_name)
            if claimed is not None and claimed > most:
                raise BadFiles(f"The config claims {claimed} layers; the weights hold {most}.")


def _check_widths(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    largest = max((max(tensor.shape, default=0) for tensor in tensors.values()), default=0)
    for name in ("vocab_size", *_WIDTH_FIELDS, "intermediate_size", "n_inner"):
        claimed = _number(config, name)
        if claimed is not None and claimed > largest:
            raise BadFiles(f"The config claims a {name} of {claimed}; no tensor is that large.")


def _kv_bytes(config: dict[str, Any]) -> int | None:
    """Return the bytes of one token's keys and values in all layers, at 2 bytes an element."""
    layers = _number(config, *_DECODER_LAYER_FIELDS)
    heads = _number(config, *_HEAD_FIELDS)
    width = _number(config, *_WIDTH_FIELDS)
    if not layers or not heads or not width:
        return None
    kv_heads = _number(config, "num_key_value_heads") or heads
    head_dim = _number(config, "head_dim") or width // heads
    return 2 * layers * kv_heads * head_dim * 2


def _stage_bytes(config: dict[str, Any]) -> int:
    """Return the same for a stage of Bark, which has a key and a value for each head."""
    layers, width = _number(config, "num_layers"), _number(config, "hidden_size")
    return 2 * (layers or 0) * (width or 0) * 2


def _number(config: dict[str, Any], *names: str) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _with_weights(found: Inspection, tensors: dict[str, Tensor]) -> Inspection:
    by_type: dict[str, int] = {}
    for tensor in tensors.values():
        by_type[tensor.dtype] = by_type.get(tensor.dtype, 0) + tensor.nbytes
    found.parameters = sum(tensor.elements for tensor in tensors.values())
    found.weight_bytes = sum(by_type.values())
    most = max(by_type, key=lambda name: by_type[name])
    found.dtype = DTYPES.get(most, most.lower())
    return found


def model_files(folder: Path) -> list[str]:
    """Return the files of a folder by path, without hidden ones (of tools). Raises BadFiles."""
    found = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts):
            continue
        if path.is_dir():
            if path.is_symlink():
                raise BadFiles("There is a link to a folder; only files may be links.")
        else:
            found.append(str(inside))
    check_files(found)
    return found
