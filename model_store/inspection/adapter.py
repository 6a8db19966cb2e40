"""Inspects adapters: LoRAs as peft saves them, and single files of LoRA weights for pipelines."""

import json
import re
from pathlib import Path
from typing import Any

from model_store.errors import BadFiles
from model_store.headers import Tensor, read_header, read_metadata
from model_store.inspection.card import base_model
from model_store.inspection.facts import Inspection, check_numbers
from model_store.inspection.files import open_files
from model_store.inspection.weights import with_weights
from model_store.kinds import read_json
from model_store.manifest import ADAPTER
from model_store.selection import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    PICKLES,
    WEIGHTS,
    adapter_files,
)

#: tensors of a low-rank pair, as the libraries for training name them
_PAIR = re.compile(r"[._]lora_(?:A|B|a|b|up|down)\b|\.lora\.(?:up|down)\b|_lora\.(?:up|down)\b")
#: what such files begin their names with that are for a pipeline
_PIPELINE = ("unet.", "transformer.", "text_encoder", "lora_unet_", "lora_te", "diffusion_model.")
_TASKS = (None, "CAUSAL_LM")
_LONGEST_NAME = 200
_LONGEST_TENSOR = 100
_A, _B = ".lora_A.weight", ".lora_B.weight"
_PLAIN_NAME = re.compile(r"[\w.]+", re.ASCII)
#: ways to begin a training that leave the base's weights as they are
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
_TOLD = "lora_adapter_metadata"  #: in the metadata of a file of weights: the adapters' configs
_DEFAULT_RANK = 8  #: the library's
#: settings by which the library would import a module of any name, or change the layers' number, or
#: add to some tokens of a text only, which it does in no merged model
_REFUSED = ("megatron_config", "layer_replication", "alora_invocation_tokens", "arrow_config")
#: settings by which the library computes more of a pair, or of other matrices, than their product
_VARIANTS = ("use_qalora", "use_bdlora", "velora_config", "monteclora_config", "kasa_config")


def is_adapter(folder: Path, paths: list[str]) -> bool:
    """Tell an adapter from a model. Raises BadFiles for one whose weights cannot be read."""
    if ADAPTER_CONFIG in paths:
        return True
    single = [path for path in adapter_files(paths) if path.endswith(WEIGHTS)]
    return any(_is_pair(name) for path in single for name in _header(folder, path))


def inspect_adapter(folder: Path) -> Inspection:
    """Inspect an adapter's folder. Raises BadFiles."""
    config_file = folder / ADAPTER_CONFIG
    return _of_peft(folder, read_json(config_file)) if config_file.exists() else _of_file(folder)


def check_config(config: dict[str, Any]) -> None:
    """Raise BadFiles for an adapter's config that is none of a LoRA for texts."""
    kind, task = config.get("peft_type"), config.get("task_type")
    if kind != "LORA":
        raise BadFiles(f"It is an adapter of the type '{str(kind)[:40]}'; only LoRA is run.")
    if task not in _TASKS:
        raise BadFiles(f"It is an adapter for the task '{str(task)[:40]}'; text is run.")
    _check_settings(config, ADAPTER_CONFIG)


def _check_settings(config: dict[str, Any], file: str) -> None:
    for name in _REFUSED:
        if config.get(name):
            raise BadFiles(f"{file}: {name} is not supported.")
    check_numbers(config, file)


def _check_ranks(config: dict[str, Any], tensors: dict[str, Tensor], file: str) -> None:
    """Raise BadFiles for a rank that no tensor has: the library makes matrices of it at once.

    Where a pattern gives layers ranks of their own, the rank of the others may be of none.
    """
    widest = max((size for each in tensors.values() for size in each.shape), default=0)
    largest = max((min(each.shape, default=0) for each in tensors.values()), default=0)
    pattern = config.get("rank_pattern") or {}
    own = [*pattern.values()] if isinstance(pattern, dict) else [pattern]
    told = [(config.get("r"), widest if own else largest), *((each, widest) for each in own)]
    for rank, most in told:
        if not isinstance(rank, int) or isinstance(rank, bool) or not 0 < rank <= most:
            raise BadFiles(f"{file} claims another rank than its weights have.")


def _told_configs(path: Path) -> list[dict[str, Any]]:
    """Return the configs of a pipeline's parts that a file of weights holds, where it does.

    The library takes them for the adapter's own, with any setting.
    """
    raw = read_metadata(path).get(_TOLD)
    if raw is None:
        return []
    try:
        told = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadFiles(f"{path.name}: its {_TOLD} is not valid JSON.") from error
    if not isinstance(told, dict):
        raise BadFiles(f"{path.name}: its {_TOLD} holds no JSON object.")
    parts: dict[str, dict[str, Any]] = {}
    for key, value in told.items():
        part, _, name = key.rpartition(".")
        parts.setdefault(part, {})[name] = value
    return [*parts.values()]


def _of_peft(folder: Path, config: dict[str, Any]) -> Inspection:
    check_config(config)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        pickled = any(path.suffix.lower() in PICKLES for path in folder.iterdir())
        kept = "as a pickle, which can run code" if pickled else "nowhere"
        raise BadFiles(f"The adapter has its weights {kept}; {ADAPTER_WEIGHTS} is needed.")
    tensors = _header(folder, ADAPTER_WEIGHTS)
    _check_ranks(config, tensors, ADAPTER_CONFIG)
    named = config.get("base_model_name_or_path")
    found = _adapter(folder, "text", tensors, named)
    found.merged = _why_merged(config, tensors)
    if found.merged is None:
        ranks = [each.shape[0] for name, each in tensors.items() if name.endswith(_A)]
        if not ranks:
            raise BadFiles("The adapter's weights hold no LoRA.")
        found.lora_rank = max(ranks)
    return found


def _why_merged(config: dict[str, Any], tensors: dict[str, Tensor]) -> str | None:
    """Say what of an adapter is more than pairs beside linear layers; None if it is no more."""
    if config.get("use_dora"):
        return "it has DoRA"
    if variant := next((each for each in _VARIANTS if config.get(each)), None):
        return f"it is no plain LoRA: {variant} is set"
    if config.get("init_lora_weights", True) not in _PLAIN_STARTS:
        return "it was begun from its base's own weights"
    alphas = config.get("alpha_pattern") or {}
    if not isinstance(alphas, dict) or any(not _PLAIN_NAME.fullmatch(each) for each in alphas):
        return "its alpha_pattern is no list of layers"
    for name, each in tensors.items():
        if not name.endswith((_A, _B)) or len(each.shape) != 2:
            return f"it changes more than linear layers: {name[:_LONGEST_TENSOR]}"
        if ".experts." in name:
            return "it changes experts"
        if ".lm_head." in f".{name}":
            return "it changes the output layer"
    return None


def _of_file(folder: Path) -> Inspection:
    names = sorted(path.name for path in folder.iterdir() if path.name.endswith(WEIGHTS))
    tensors = _header(folder, names[0])
    for part in _told_configs(folder / names[0]):
        _check_settings(part, names[0])
        _check_ranks({"r": _DEFAULT_RANK, **part}, tensors, names[0])
    engine = "image" if any(name.startswith(_PIPELINE) for name in tensors) else "text"
    if engine == "text":
        raise BadFiles(f"{names[0]} holds a LoRA for no pipeline, and {ADAPTER_CONFIG} is missing.")
    return _adapter(folder, engine, tensors, None)


def _adapter(folder: Path, engine: str, tensors: dict[str, Tensor], named: object) -> Inspection:
    if not any(_is_pair(name) for name in tensors):
        raise BadFiles("The adapter's weights hold no LoRA.")
    found = Inspection(ADAPTER, engine)
    # Who trained from a folder named that, and the card tells the model's name.
    told = [base_model(folder), named]
    if isinstance(named, str) and not named.startswith((".", "/", "~")):
        told.reverse()
    names = (each for each in told if isinstance(each, str))
    found.base = next((each for each in names if _is_name(each)), None)
    return with_weights(found, tensors)


def _is_name(value: str) -> bool:
    return 0 < len(value) <= _LONGEST_NAME and value.isprintable()


def _is_pair(name: str) -> bool:
    return _PAIR.search(name) is not None


def _header(folder: Path, path: str) -> dict[str, Tensor]:
    open_files(folder, [path])
    return read_header(folder / path)
