"""Holds what the files of a model tell, and reads the numbers of their configs."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from model_store.errors import BadFiles
from model_store.manifest import FACTS, PackedLayers

CONTEXT_FIELDS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_sequence_length",
    "seq_length",
    "max_seq_len",
)
#: of a decoder first: in a model with both stacks the encoder's tokens are not in the cache
DECODER_LAYER_FIELDS = (
    "decoder_layers",
    "num_decoder_layers",
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
)
LAYER_FIELDS = (*DECODER_LAYER_FIELDS, "encoder_layers", "num_encoder_layers")
#: not "num_heads": those of Mamba2 and xLSTM are no attention, and keep no keys and values
HEAD_FIELDS = (
    "decoder_attention_heads",
    "num_attention_heads",
    "n_head",
    "n_heads",
    "attention_heads",
)
WIDTH_FIELDS = ("hidden_size", "n_embd", "d_model")
_SIZES = (*CONTEXT_FIELDS, *LAYER_FIELDS, *HEAD_FIELDS, *WIDTH_FIELDS, "vocab_size")
_MAY_BE_NEGATIVE = frozenset(CONTEXT_FIELDS)  #: some write -1 for a context without end
_MOST = 2**31 - 1  #: of any size; a library builds tables as long as some of them


@dataclass
class Inspection:
    """Holds the facts of a model that its files alone tell."""

    kind: str
    engine: str
    architecture: str | None = None
    model_type: str | None = None
    max_context: int | None = None
    dtype: str | None = None
    config_dtype: str | None = None
    parameters: int = 0
    weight_bytes: int = 0
    vocab_size: int | None = None
    longest_token: int | None = None
    longest_prompt: int = 0
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
    license: str | None = None
    languages: tuple[str, ...] = ()
    base: str | None = None
    lora_rank: int = 0
    merged: str | None = None
    quantization: str | None = None
    linear_parameters: int = 0
    linear_rows: int = 0
    packed: tuple[PackedLayers, ...] = ()
    facts: int = FACTS


def number(config: dict[str, Any], *names: str) -> int | None:
    """Return the first of the named fields that is a whole number above 0."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON value at every depth, by a stack: files may nest to the limit."""
    for one in _values(value):
        if isinstance(one, dict):
            yield one


def _values(value: Any) -> Iterator[Any]:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        yield one
        if isinstance(one, dict):
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)


def check_numbers(config: dict[str, Any], file: str = "config.json") -> None:
    """Refuse a config whose sizes are of a wrong type, or that holds what is not a number.

    Infinity is one: state-space models name it as a limit. Raises BadFiles.
    """
    if any(isinstance(value, float) and math.isnan(value) for value in _values(config)):
        raise BadFiles(f"{file} holds NaN where a number is due.")
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        _check_sizes(part, _SIZES, file)


def _check_sizes(config: dict[str, Any], names: Iterable[str], file: str) -> None:
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise BadFiles(f"{file}: {name} is not a whole number.")
        if value > _MOST or (value < 0 and name not in _MAY_BE_NEGATIVE):
            raise BadFiles(f"{file}: {name} is beyond what any model has.")
