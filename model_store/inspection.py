"""From a folder in Hugging Face layout to what the store says of it, or why it is refused.

Everything that can be told from files alone is told here, before any library opens them: code,
pickles, indices that point elsewhere, headers that lie, configs that claim more than the weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model_store.errors import BadFiles
from model_store.headers import DTYPES, Tensor, read_header
from model_store.kinds import FAKE, kind_of, read_json
from model_store.names import check_file

_CONTEXT_FIELDS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_sequence_length",
    "seq_length",
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass
class Found:
    """What the files of a model say."""

    kind: str
    engine: str
    architecture: str | None = None
    model_type: str | None = None
    max_context: int | None = None
    dtype: str | None = None
    parameters: int = 0
    weight_bytes: int = 0
    vocab_size: int | None = None
    has_chat_template: bool = False
    kv_bytes_per_token: int | None = None
    capabilities: tuple[str, ...] = field(default_factory=tuple)


def inspect(folder: Path) -> Found:
    """Raises BadFiles when the folder is not a model that may be taken in."""
    for path in folder.rglob("*.json"):
        _refuse_code(read_json_or_list(path))
    kind = kind_of(folder)
    if kind == "image":
        return _inspect_pipeline(folder)
    config = read_json(folder / "config.json")
    if config.get("model_type") == FAKE:
        return Found(
            "text",
            "fake",
            model_type=FAKE,
            has_chat_template=True,
            capabilities=("completion", "chat"),
        )
    return _inspect_transformer(folder, kind, config)


def read_json_or_list(path: Path) -> Any:
    """Tokenizer files may hold lists; configs may not."""
    try:
        return read_json(path)
    except BadFiles:
        if path.name in ("config.json", "model_index.json", "generation_config.json"):
            raise
        return None


def _refuse_code(value: Any) -> None:
    if isinstance(value, dict) and "auto_map" in value:
        raise BadFiles("This model needs code of its own to run, which is never loaded.")


def _inspect_pipeline(folder: Path) -> Found:
    index = read_json(folder / "model_index.json")
    name = index.get("_class_name")
    parts = [value for key, value in index.items() if not key.startswith("_")]
    lists = [value for value in parts if isinstance(value, list)]
    libraries = {value[0] for value in lists if value}
    if not isinstance(name, str) or not libraries <= {"diffusers", "transformers", None}:
        raise BadFiles("This pipeline needs code of its own to run, which is never loaded.")
    tensors: dict[str, Tensor] = {}
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        tensors |= {f"{part.name}/{key}": value for key, value in weights(part).items()}
    if not tensors:
        raise BadFiles("There are no safetensors weights in this pipeline.")
    return _with_weights(Found("image", "image", architecture=name), tensors)


def _inspect_transformer(folder: Path, kind: str, config: dict[str, Any]) -> Found:
    tensors = weights(folder)
    if not tensors:
        pickled = any(path.suffix in _PICKLES for path in folder.iterdir())
        why = "its weights are pickles, which can run code" if pickled else "it has no weights"
        raise BadFiles(f"Only safetensors are taken, and {why}.")
    inner = config.get("text_config")
    text: dict[str, Any] = {**config, **inner} if isinstance(inner, dict) else config
    found = Found(
        kind,
        kind,
        architecture=(config.get("architectures") or [None])[0],
        model_type=config.get("model_type"),
        max_context=_number(text, *_CONTEXT_FIELDS),
        vocab_size=_number(text, "vocab_size"),
        has_chat_template=_has_template(folder),
    )
    if kind == "text":
        _check_claims(text, tensors)
        found.kv_bytes_per_token = _kv_bytes(text)
        found.capabilities = ("completion", "chat") if found.has_chat_template else ("completion",)
    return _with_weights(found, tensors)


def weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of one component's safetensors, its index obeyed and checked."""
    indices = sorted(folder.glob("*.safetensors.index.json"))
    files = _indexed(folder, indices[0]) if indices else sorted(folder.glob("*.safetensors"))
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= read_header(file)
    if indices:
        missing = set(read_json(indices[0])["weight_map"]) - set(tensors)
        if missing:
            raise BadFiles(
                f"The index names tensors that no shard holds, {min(missing)[:80]} first."
            )
    return tensors


def _indexed(folder: Path, index: Path) -> list[Path]:
    """The shards that an index names: plain names, in this folder, and there."""
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise BadFiles(f"{index.name} has no weight_map.")
    names = sorted(set(listed.values()))
    for name in names:
        check_file(name)
        if "/" in name or not name.endswith(".safetensors"):
            raise BadFiles(f"{index.name} points out of its folder, or to a pickle.")
        if not (folder / name).is_file():
            raise BadFiles(f"The shard {name} is missing.")
    return [folder / name for name in names]


def _check_claims(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """A config larger than its weights would have the library build modules for minutes."""
    layers = _number(config, "num_hidden_layers", "n_layer", "num_layers")
    found = {part for name in tensors for part in name.split(".") if part.isdigit()}
    if layers is not None and layers > len(found):
        raise BadFiles(f"The config claims {layers} layers; the weights hold {len(found)}.")
    largest = max((max(tensor.shape, default=0) for tensor in tensors.values()), default=0)
    for name in ("vocab_size", "hidden_size", "n_embd"):
        claimed = _number(config, name)
        if claimed is not None and claimed > largest:
            raise BadFiles(f"The config claims a {name} of {claimed}; no tensor is that large.")


def _kv_bytes(config: dict[str, Any]) -> int | None:
    """Keys and values of one token over all layers, at 2 bytes an element."""
    layers = _number(config, "num_hidden_layers", "n_layer", "num_layers")
    heads = _number(config, "num_attention_heads", "n_head")
    width = _number(config, "hidden_size", "n_embd")
    if not layers or not heads or not width:
        return None
    kv_heads = _number(config, "num_key_value_heads") or heads
    head_dim = _number(config, "head_dim") or width // heads
    return 2 * layers * kv_heads * head_dim * 2


def _number(config: dict[str, Any], *names: str) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").exists() or (folder / "chat_template.json").exists():
        return True
    path = folder / "tokenizer_config.json"
    return path.exists() and bool(read_json(path).get("chat_template"))


def _with_weights(found: Found, tensors: dict[str, Tensor]) -> Found:
    by_type: dict[str, int] = {}
    for tensor in tensors.values():
        by_type[tensor.dtype] = by_type.get(tensor.dtype, 0) + tensor.nbytes
    found.parameters = sum(tensor.elements for tensor in tensors.values())
    found.weight_bytes = sum(by_type.values())
    most = max(by_type, key=lambda name: by_type[name])
    found.dtype = DTYPES.get(most, most.lower())
    return found


def model_files(folder: Path) -> Iterator[str]:
    """The files that belong to a model, by path inside the folder: never code, never pickles."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts) or path.is_dir():
            continue
        if path.suffix != ".py" and path.suffix not in _PICKLES:
            yield check_file(str(inside))
