"""Tells by which of its library's classes a text model is loaded, and what it reads."""

from pathlib import Path
from typing import Any, Literal

import transformers
from transformers.models.auto import modeling_auto

#: A decoder of text alone; one that reads pictures, too; an encoder of the prompt and a decoder.
Family = Literal["causal", "vision", "seq2seq"]

_CLASSES: dict[Family, Any] = {
    "causal": transformers.AutoModelForCausalLM,
    "vision": transformers.AutoModelForImageTextToText,
    "seq2seq": transformers.AutoModelForSeq2SeqLM,
}
#: Files that say how pictures become numbers.
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")


def family_of(config: Any) -> Family:
    """Return the family of a model's config."""
    names = getattr(config, "architectures", None) or []
    if config.is_encoder_decoder:
        return "seq2seq"
    if config.model_type in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        known = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[config.model_type]
        return "vision" if not names or names[0] == known else "causal"
    return "causal"


def auto_class(family: Family) -> Any:
    """Return the library's class that loads models of a family."""
    return _CLASSES[family]


def reads_pictures(folder: Path, family: Family) -> bool:
    """Return whether a model has what makes its inputs of pictures."""
    return family == "vision" and any((folder / name).is_file() for name in _PROCESSORS)
