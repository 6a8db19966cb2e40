"""Reads sentence-transformers' files, which say how a text becomes a vector; free of torch.

``modules.json`` lists the modules that follow one another: Transformer, Pooling, Dense, Normalize.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.engines.base import Refused

#: Ways to pool token states; a model that names several joins their vectors in this order.
POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU")

_OVERALL = "config_sentence_transformers.json"
_CLASSIFIER = "ForSequenceClassification"
_OLD_MODES = {  #: the switches of files from before ``pooling_mode``
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_TRANSFORMER_CONFIGS = (  #: the library's names of it over the years
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)


@dataclass(frozen=True, slots=True)
class Dense:
    """Describes a linear layer over the vector; its weights lie in ``folder``."""

    folder: str
    inputs: int
    outputs: int
    bias: bool
    activation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Describes a model's way from text to vector."""

    pooling: tuple[str, ...] = ("mean",)
    include_prompt: bool = True  #: whether the prompt's tokens are pooled, too
    dense: tuple[Dense, ...] = ()
    normalize: bool = False
    max_tokens: int | None = None
    lower_case: bool = False
    prompts: Mapping[str, str]  #: texts that go before an input, by name
    default_prompt: str | None = None
    score: str | None = None  #: of a cross-encoder: the activation that its scores go through

    def prompt(self, name: str | None) -> str:
        """Return the text of a prompt, of the default one for None. Raises Refused."""
        if name is None:
            return self.prompts[self.default_prompt] if self.default_prompt is not None else ""
        if name not in self.prompts:
            raise Refused(
                "INVALID_REQUEST",
                f"This model has no prompt '{name[:64]}'.",
                param="prompt_name",
                details={"prompts": sorted(self.prompts)[:64]},
            )
        return self.prompts[name]


def read_layout(folder: Path) -> Layout:
    """Read the layout of a model's folder. Raises Refused for a module that is not run here.

    A folder without ``modules.json`` is pooled by the mean, as the library itself does, unless its
    architecture is a classifier's, which makes it a cross-encoder.
    """
    overall = _read(folder / _OVERALL)
    prompts = overall.get("prompts") or {}
    default = overall.get("default_prompt_name")
    if not _is_texts(prompts) or (default is not None and default not in prompts):
        raise _malformed(_OVERALL)
    fields: dict[str, Any] = {"prompts": prompts, "default_prompt": default}
    fields |= _transformer(folder)
    dense: list[Dense] = []
    config = _read(folder / "config.json")
    if _is_cross_encoder(folder, overall, config):
        if _modules(folder):
            raise Refused("MODEL_LOAD_FAILED", "A cross-encoder with further modules is not run.")
        return Layout(score=_score(overall, config), **fields)
    for kind, path in _modules(folder):
        if fields.get("normalize"):
            raise Refused("MODEL_LOAD_FAILED", f"A module {kind} after Normalize is not run here.")
        match kind:
            case "Pooling":
                fields |= _pooling(_read(folder / path / "config.json"))
            case "Dense":
                dense.append(_dense(path, _read(folder / path / "config.json")))
            case "Normalize":
                fields["normalize"] = True
            case _:
                raise Refused(
                    "MODEL_LOAD_FAILED",
                    f"The model's module {kind[:64]} is not run here, only Transformer, Pooling, "
                    "Dense and Normalize.",
                )
    return Layout(dense=tuple(dense), **fields)


def _is_cross_encoder(folder: Path, overall: dict[str, Any], config: dict[str, Any]) -> bool:
    if overall or (folder / "modules.json").is_file():
        return overall.get("model_type") == "CrossEncoder"
    return any(str(name).endswith(_CLASSIFIER) for name in config.get("architectures") or ())


def _score(overall: dict[str, Any], config: dict[str, Any]) -> str:
    """Return the activation of a cross-encoder's scores, which versions name in different places.

    One that is no class of torch is ignored, as the library does without trust in code.
    """
    older = config.get("sentence_transformers")
    older = older.get("activation_fn") if isinstance(older, dict) else None
    oldest = config.get("sbert_ce_default_activation_function")
    for named in (overall.get("activation_fn"), older or oldest):
        if isinstance(named, str) and named.startswith("torch."):
            return _activation(named, "A cross-encoder")
    return "Sigmoid"


def _activation(path: str, of: str) -> str:
    """Return the name of a class of torch. Raises Refused for one that is not run here."""
    name = path.rpartition(".")[2]
    if name not in ACTIVATIONS:
        raise Refused("MODEL_LOAD_FAILED", f"{of} with the activation {name[:64]} is not run here.")
    return name


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Return the names and folders of the modules after the transformer."""
    path = folder / "modules.json"
    if not path.is_file():
        return []
    listed = json.loads(path.read_text())
    try:
        found = [(each["type"].rpartition(".")[2], each["path"]) for each in listed]
    except (TypeError, KeyError, AttributeError):
        raise _malformed("modules.json") from None
    if not found or found[0] != ("Transformer", ""):
        raise Refused(
            "MODEL_LOAD_FAILED",
            "The model does not begin with a transformer in its own folder, as modules.json says.",
        )
    names = [each.name for each in folder.iterdir()]
    if any(path not in names and kind != "Normalize" for kind, path in found[1:]):
        raise _malformed("modules.json")
    return found[1:]


def _transformer(folder: Path) -> dict[str, Any]:
    for name in _TRANSFORMER_CONFIGS:
        if (folder / name).is_file():
            config = _read(folder / name)
            most = config.get("max_seq_length")
            if most is not None and (not isinstance(most, int) or most < 1):
                raise _malformed(name)
            return {"max_tokens": most, "lower_case": bool(config.get("do_lower_case"))}
    return {}


def _pooling(config: dict[str, Any]) -> dict[str, Any]:
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for switch, mode in _OLD_MODES.items() if config.get(switch)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not modes or not set(modes) <= set(POOLING_MODES):
        raise _malformed("Pooling's config.json")
    return {
        "pooling": tuple(modes),
        "include_prompt": bool(config.get("include_prompt", True)),
    }


def _dense(path: str, config: dict[str, Any]) -> Dense:
    activation = _activation(str(config.get("activation_function", "Tanh")), "A Dense module")
    if config.get("use_residual"):
        raise Refused("MODEL_LOAD_FAILED", "A Dense module with a residual is not run here.")
    inputs, outputs = config.get("in_features"), config.get("out_features")
    if not isinstance(inputs, int) or not isinstance(outputs, int) or min(inputs, outputs) < 1:
        raise _malformed("Dense's config.json")
    return Dense(path, inputs, outputs, bool(config.get("bias", True)), activation)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = json.loads(path.read_text())
    if not isinstance(value, dict):
        raise _malformed(path.name)
    return value


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _malformed(name: str) -> Refused:
    return Refused("MODEL_LOAD_FAILED", f"The model's {name} is malformed.")
