"""Tells by which of its library's classes a text model is loaded, and what it reads."""

from pathlib import Path
from typing import Any, Literal

import transformers
from transformers.models.auto import modeling_auto

from workers.engines.torch_env import load_failed

#: A decoder of text alone; one that reads pictures, too; an encoder of the prompt and a decoder.
Family = Literal["causal", "vision", "seq2seq"]

_CLASSES: dict[Family, Any] = {
    "causal": transformers.AutoModelForCausalLM,
    "vision": transformers.AutoModelForImageTextToText,
    "seq2seq": transformers.AutoModelForSeq2SeqLM,
}
#: Files that say how pictures become numbers.
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def family_of(config: Any) -> Family:
    """Return the family of a model's config."""
    names = getattr(config, "architectures", None) or []
    if config.is_encoder_decoder:
        return "seq2seq"
    if config.model_type in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        known = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[config.model_type]
        return "vision" if not names or names[0] == known else "causal"
    return "causal"


def decoder_starts(model: Any) -> tuple[int, ...]:
    """Return the tokens that ``generate()`` lets the decoder of a model begin with.

    Raises Refused for one whose files name none.
    """
    settings = model.generation_config
    own = model.config.get_text_config(decoder=True)
    found = (
        getattr(each, "decoder_start_token_id", None) for each in (settings, model.config, own)
    )
    first = next((each for each in (*found, settings.bos_token_id) if isinstance(each, int)), None)
    if first is None:
        raise load_failed("The model's files name no token that its decoder begins with.")
    forced = settings.forced_bos_token_id
    return (first, forced) if isinstance(forced, int) else (first,)


def auto_class(family: Family) -> Any:
    """Return the library's class that loads models of a family."""
    return _CLASSES[family]


def reads_pictures(folder: Path, family: Family) -> bool:
    """Return whether a model has what makes its inputs of pictures."""
    return family == "vision" and any((folder / name).is_file() for name in PROCESSOR_FILES)
