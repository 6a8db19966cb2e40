"""Inspects models of the transformers library, by their kind."""

import re
from pathlib import Path
from typing import Any

from model_store.chat_templates import WITHOUT_TURNS, has_template, switches, writes_reasoning
from model_store.inspection.context import config_dtype, longest_context
from model_store.inspection.facts import (
    DECODER_LAYER_FIELDS,
    HEAD_FIELDS,
    WIDTH_FIELDS,
    Inspection,
    check_numbers,
    number,
)
from model_store.inspection.files import model_files
from model_store.inspection.quantized import (
    linear_layers,
    method_of,
    packed_layers,
    parameters_of,
)
from model_store.inspection.weights import (
    check_layers,
    check_widths,
    no_weights,
    weights,
    with_weights,
)
from model_store.kinds import (
    SENTENCE_FILE,
    architecture_of,
    is_cross_encoder,
    known_names,
    model_type_of,
    read_json,
)
from model_store.manifest import EMBEDDING, RERANK, VISION
from model_store.selection import numbered_parts
from model_store.tokenizers import longest_token

_CACHED_STAGES = ("semantic_config", "coarse_acoustics_config")  #: of Bark
_MOST_SPEAKERS = 10_000
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")  #: of pictures
_VOICE = re.compile(r"(?:v2/)?([a-z]{2})_speaker_")  #: Bark's are named for a language
_VOICE_INDEX = "speaker_embeddings_path.json"


def inspect_transformer(folder: Path, kind: str, config: dict[str, Any]) -> Inspection:
    """Inspect a folder of that kind with its config. Raises BadFiles."""
    check_numbers(config)
    tensors = weights(folder)
    if not tensors:
        raise no_weights(folder)
    for part in numbered_parts(model_files(folder)):
        tensors |= {f"{part}/{name}": tensor for name, tensor in weights(folder / part).items()}
    if kind != "embedding":  # those may use one layer many times
        check_layers(config, tensors)
    if kind == "text":
        check_widths(_of_text(config), tensors)
    found = with_weights(describe_config(folder, kind, config), tensors)
    found.parameters = parameters_of(config, tensors)
    if kind == "text":
        found.linear_parameters, found.linear_rows = linear_layers(_of_text(config), tensors)
        found.packed = packed_layers(_of_text(config), tensors)
    return found


def describe_config(folder: Path, kind: str, config: dict[str, Any]) -> Inspection:
    """Return what the texts of a model tell. Raises BadFiles for a config that cannot be read."""
    text = _of_text(config)
    model_type = model_type_of(config)
    found = Inspection(
        kind,
        kind,
        architecture=architecture_of(config),
        model_type=model_type,
        max_context=longest_context(text),
        config_dtype=config_dtype(config),
        vocab_size=number(text, "vocab_size"),
        quantization=method_of(config),
        has_chat_template=has_template(folder) or model_type in WITHOUT_TURNS,
    )
    if kind == "speech":
        _add_speech(found, folder, config)
    if kind == "transcription":
        found.capabilities = ("speech-to-text",)
        found.languages = _heard_languages(folder)
        found.kv_bytes_per_token = _kv_bytes(config)
        # What was heard is kept beside what was written.
        lengths = ("max_source_positions", "max_target_positions")
        found.cache_positions = sum(number(config, name) or 0 for name in lengths)
    if kind == "embedding":
        found.capabilities = (RERANK if is_cross_encoder(folder, config) else EMBEDDING,)
        found.longest_prompt = _longest_prompt(folder)
    if kind == "text":
        found.kv_bytes_per_token = _kv_bytes(text)
        _add_chat(found, folder)
        if found.architecture in known_names("seq2seq"):
            _add_encoder(found, text)
    return found


def _longest_prompt(folder: Path) -> int:
    """Return the bytes of the longest text that sentence-transformers puts before an input."""
    path = folder / SENTENCE_FILE
    prompts = read_json(path).get("prompts") if path.exists() else None
    texts = prompts.values() if isinstance(prompts, dict) else ()
    sizes = [len(each.encode("utf-8", "replace")) for each in texts if isinstance(each, str)]
    return max(sizes, default=0)


def _of_text(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a model's text part, which may be inside the whole's."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else config


def _add_speech(found: Inspection, folder: Path, config: dict[str, Any]) -> None:
    found.voices = _voices(folder, config)
    found.capabilities = ("text-to-speech",)
    spoken = filter(None, map(_VOICE.match, found.voices))
    found.languages = tuple(sorted({each[1] for each in spoken}))
    stages = [config.get(stage) for stage in _CACHED_STAGES]
    parts = [part for part in stages if isinstance(part, dict)]
    found.kv_bytes_per_token = sum(_stage_bytes(part) for part in parts)
    found.cache_positions = max((number(part, "block_size") or 0 for part in parts), default=0)


def _add_chat(found: Inspection, folder: Path) -> None:
    """Add what the tokenizer and the templates tell of a text model."""
    found.longest_token = longest_token(folder)
    found.template_switches = switches(folder)
    found.capabilities = ("completion",)
    if found.has_chat_template:
        found.capabilities += ("chat",)
        if "tools" in found.template_switches:
            found.capabilities += ("tools",)
        if writes_reasoning(folder):
            found.capabilities += ("reasoning",)
        if found.architecture in known_names("vision") and _has_processor(folder):
            found.capabilities += (VISION,)


def _has_processor(folder: Path) -> bool:
    """Tell whether a folder says how pictures become numbers."""
    return any((folder / name).is_file() for name in _PROCESSORS)


def _add_encoder(found: Inspection, config: dict[str, Any]) -> None:
    """Count what a decoder keeps of its own tokens and of those that the encoder has read."""
    own = _kv_bytes(config)
    layers = number(config, *DECODER_LAYER_FIELDS)
    heads, width = number(config, "num_heads"), number(config, "d_kv")
    if own is None and layers and heads and width:  # T5's
        own = 2 * layers * heads * width * 2
    found.kv_bytes_per_token = None if own is None else 2 * own


def _voices(folder: Path, config: dict[str, Any]) -> tuple[str, ...]:
    """Return a repository's voices: Bark's presets, numbered speakers, or speaker vectors."""
    if (folder / _VOICE_INDEX).is_file():
        index = read_json(folder / _VOICE_INDEX)
        return tuple(sorted(name for name, parts in index.items() if isinstance(parts, dict)))
    speakers = number(config, "num_speakers") or 1
    if speakers > 1:
        return tuple(f"speaker_{each}" for each in range(min(speakers, _MOST_SPEAKERS)))
    return tuple(sorted(path.stem for path in folder.glob("speaker_embeddings/*.npy")))


def _heard_languages(folder: Path) -> tuple[str, ...]:
    """Return the languages that a Whisper's generation settings list; English alone has no list."""
    path = folder / "generation_config.json"
    settings = read_json(path) if path.is_file() else {}
    listed = settings.get("lang_to_id")
    if isinstance(listed, dict):
        return tuple(sorted(filter(None, (each.strip("<|>") for each in listed))))
    return ("en",) if settings.get("is_multilingual") is False else ()


def _kv_bytes(config: dict[str, Any]) -> int | None:
    """Return the bytes of one token's keys and values in all layers, at 2 bytes an element."""
    layers = number(config, *DECODER_LAYER_FIELDS)
    heads = number(config, *HEAD_FIELDS)
    width = number(config, *WIDTH_FIELDS)
    if not layers or not heads or not width:
        return None
    kv_heads = number(config, "num_key_value_heads") or heads
    head_dim = number(config, "head_dim") or width // heads
    return 2 * layers * kv_heads * head_dim * 2


def _stage_bytes(config: dict[str, Any]) -> int:
    """Return the same for a stage of Bark, which has a key and a value for each head."""
    layers, width = number(config, "num_layers"), number(config, "hidden_size")
    return 2 * (layers or 0) * (width or 0) * 2
