"""From a folder to a model and a tokenizer: nothing is fetched, unpickled or executed.

Whatever is wrong with the files becomes :class:`Refused` with MODEL_LOAD_FAILED.
"""

import copy
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from workers.engines import torch_env
from workers.engines.base import Refused, reason
from workers.engines.text.fused import can_fuse, join_projections
from workers.protocol import Load

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_LONGEST_HEADER = 100_000_000


@dataclass(slots=True, frozen=True)
class LoadedModel:
    model: Any
    tokenizer: Any
    dtype: torch.dtype
    device: torch.device
    eos_ids: frozenset[int]
    vocab_size: int  #: rows of the output head
    max_positions: int
    spread: bool = False  #: its layers lie on several devices


def load(spec: Load) -> LoadedModel:
    """Load model and tokenizer of ``spec``. Raises :class:`Refused`."""
    folder = Path(spec.path)
    config = _config(folder)
    _check_files(folder, config)
    device = _device(spec.device)
    dtype = _dtype(spec.dtype, config, device)
    tokenizer = _tokenizer(folder)
    cards = len(spec.visible_devices.split(",")) if device.type == "cuda" else 1
    model = _model(folder, config, dtype, device, spread=cards > 1)
    vocab = model.get_output_embeddings().weight.shape[0]
    _check_vocabulary(tokenizer, model, vocab)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        dtype=dtype,
        device=device,
        eos_ids=_eos_ids(model, tokenizer),
        vocab_size=vocab,
        max_positions=_max_positions(config),
        spread=cards > 1,
    )


def private_copy(tokenizer: Any) -> Any:
    """A tokenizer that shares no state: the Rust objects are not safe between threads."""
    return copy.deepcopy(tokenizer)


def failed(message: str) -> Refused:
    return Refused("MODEL_LOAD_FAILED", message)


def _config(folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        raise failed("The model's folder has no config.json.")
    try:
        raw = json.loads((folder / "config.json").read_text())
        if "auto_map" in raw:
            raise failed("The model brings its own code, which is not run.")
        return transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise failed(f"The model's config.json is not valid: {reason(error)}") from error


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise failed("The model is to run on CUDA, but this process sees no CUDA device.")
    return torch.device(name)


def _dtype(wanted: str | None, config: Any, device: torch.device) -> torch.dtype:
    """The wanted dtype, else the files' own where the device computes it well.

    float16 on a CPU becomes bfloat16: CPUs have no fast float16 products, and float32 would take
    twice the memory that the files promise. On a card float32 takes several times longer than the
    half precision of its tensor cores, and cards that emulate bfloat16 compute in float16.
    """
    if wanted is not None:
        if wanted not in _DTYPES:
            raise failed(f"The dtype {wanted} is none of {', '.join(_DTYPES)}.")
        return _DTYPES[wanted]
    own = getattr(config, "dtype", None) or torch.float32
    if own not in _DTYPES.values():
        raise failed(f"The model's own dtype {own} is not supported; set one.")
    if own is torch.float16 and device.type == "cpu":
        return torch.bfloat16
    if own is not torch.float16 and device.type == "cuda":
        return torch_env.half_precision(device)
    dtype: torch.dtype = own
    return dtype


# ---- files -----------------------------------------------------------------------------------


def _check_files(folder: Path, config: Any) -> None:
    check_sizes(
        folder,
        layers=getattr(config, "num_hidden_layers", 0) or 0,
        hidden=getattr(config, "hidden_size", 0) or 0,
        vocab=getattr(config, "vocab_size", 0) or 0,
    )


def check_sizes(folder: Path, *, layers: int, hidden: int, vocab: int) -> None:
    """The index points into the folder, and the config is not larger than the weights.

    The library follows any path in an index, and builds all layers of a config before it looks
    at the weights: a config of 100,000 layers over a small file would never end.
    """
    tensors: dict[str, list[int]] = {}
    for path in _weight_files(folder):
        tensors |= _shapes(path)
    sizes = [_product(shape) for shape in tensors.values()]
    if layers > len(tensors) or hidden * vocab > sum(sizes) or hidden > max(sizes, default=0):
        raise failed("The model's config.json does not fit its weights.")


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if not (folder / names[0]).is_file() and index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise failed("The index of the weights is not valid.") from error
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise failed("The index of the weights points out of the model's folder.")
        if not (folder / name).is_file():
            raise failed(f"The model has no file {name}.")
    return [folder / name for name in names]


def _shapes(path: Path) -> dict[str, list[int]]:
    """Tensor names and shapes of a .safetensors file, from its header."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_LONGEST_HEADER, path.stat().st_size):
                raise failed(f"The header of {path.name} is not valid.")
            header = json.loads(file.read(length))
        return {name: t["shape"] for name, t in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise failed(f"The header of {path.name} is not valid.") from error


def _product(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


# ---- model and tokenizer ---------------------------------------------------------------------


def _model(
    folder: Path, config: Any, dtype: torch.dtype, device: torch.device, *, spread: bool
) -> Any:
    """The model on its device, or its layers in even parts over all that this process sees."""
    try:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            device_map="balanced" if spread else None,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        if torch_env.is_out_of_memory(error):
            raise torch_env.out_of_memory() from error
        # The library and safetensors raise nearly every kind for files that do not fit.
        raise failed(f"The weights do not load: {reason(error)}") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise failed(f"{len(missing)} tensors are missing from the weights, {missing[0]} first.")
    if spread:
        # Where all of it is on one device, the library makes no map.
        check_placement(getattr(model, "hf_device_map", {"": model.device}))
    else:
        if can_fuse(model):
            join_projections(model, device)
        model.to(device)
    return model.eval().requires_grad_(False)


def check_placement(device_map: Mapping[str, Any]) -> None:
    """Refuse a model of which a part is not on a card.

    device_map: the devices of the model's modules, as the library chose them. What does not fit
    the cards it puts into the host's memory or on the disk without a word.
    """
    on_cards = (isinstance(where, int) or "cuda" in str(where) for where in device_map.values())
    if not all(on_cards):
        raise torch_env.out_of_memory()


def _tokenizer(folder: Path) -> Any:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        backend = tokenizer.backend_tokenizer
        # What tokenizer.json may hold as defaults would cut or fill prompts in silence.
        backend.no_truncation()
        backend.no_padding()
        tokenizer.decode(backend.encode("A try.").ids)
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise failed(f"The tokenizer does not work: {reason(error)}") from error
    return tokenizer


def is_panic(error: BaseException) -> bool:
    """Whether this is a panic of Rust code; its class is no Exception and cannot be imported."""
    return type(error).__name__ == "PanicException"


def _check_vocabulary(tokenizer: Any, model: Any, vocab: int) -> None:
    largest = max(tokenizer.get_vocab().values(), default=-1)
    rows = model.get_input_embeddings().weight.shape[0]
    if largest >= rows:
        raise failed(
            f"The tokenizer knows the id {largest}, but the embedding has only {rows} rows."
        )
    if vocab > rows:
        raise failed(f"The output head has {vocab} rows, the embedding only {rows}.")


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """All ids that end an answer: the generation config's one or many, and the tokenizer's."""
    ids: set[Any] = set()
    for source in (model.generation_config, model.config, tokenizer):
        found = getattr(source, "eos_token_id", None)
        ids.update(found if isinstance(found, list | tuple) else [found])
    return frozenset(token for token in ids if isinstance(token, int))


def _max_positions(config: Any) -> int:
    """How many positions the model knows.

    Some rotary scalings change all frequencies once any sequence is longer than the original
    context; rows of one batch would then disturb each other, so the context ends there.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        raise failed("The model's config.json does not tell its longest context.")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        positions = min(positions, rope.get("original_max_position_embeddings") or positions)
    return positions
