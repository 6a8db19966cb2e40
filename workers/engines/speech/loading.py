"""Loads speech models from a folder; nothing is fetched or unpickled."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from workers.engines.defaults import SPEECH_CACHE_BYTES, SPEECH_ROWS
from workers.engines.library_config import library_config
from workers.engines.numbers import check_numbers
from workers.engines.packed_linear import pack_all, unmap
from workers.engines.speech.bark.speaker import BarkSpeaker
from workers.engines.speech.bark.voices import Voices
from workers.engines.speech.model import SpeechModel
from workers.engines.speech.speecht5 import SpeechT5, read_voices
from workers.engines.speech.vits import Vits
from workers.engines.torch_env import (
    check_missing,
    choose_dtype,
    device,
    library_errors,
    load_failed,
    straight_to,
)
from workers.engines.weight_files import variant_of
from workers.protocol import Load


def load(spec: Load) -> tuple[SpeechModel, int]:
    """Load a model; returns it, and how many sentences it speaks at once.

    Raises Refused with MODEL_LOAD_FAILED if anything is wrong with its files.
    """
    device(spec)  # refused before any file is read
    with library_errors("The model does not load"):
        config = json.loads((Path(spec.path) / "config.json").read_text())
        model_type = config.get("model_type")
        if model_type not in _FAMILIES:
            raise load_failed(
                f"Speech models of the type '{str(model_type)[:40]}' do not run here; those of "
                f"{', '.join(_FAMILIES)} do."
            )
        if model_type != "speecht5" and spec.speech and (spec.speech.vocoder or spec.speech.voices):
            raise load_failed("Only SpeechT5 takes the settings speech.vocoder and speech.voices.")
        return _FAMILIES[model_type](spec)


def _bark(spec: Load) -> tuple[SpeechModel, int]:
    model = _model(transformers.BarkModel, spec, Path(spec.path), "bark")
    model.codec_model.float()  # it is small, and its output is what people hear
    check_numbers(model.semantic.dtype, lambda: _logits_of_stages(model))
    if spec.device == "cpu":
        for part in (model.semantic.layers, model.coarse_acoustics.layers, model.fine_acoustics):
            pack_all(part)
        unmap(model)
    codes = model.generation_config.codebook_size
    semantic = model.generation_config.semantic_config["semantic_vocab_size"]
    voices = Voices(Path(spec.path), semantic, codes)
    rows = min(spec.max_batch or SPEECH_ROWS, _rows_in_budget(model, spec))
    return BarkSpeaker(model, _tokenizer(spec, model), voices, rows), rows


def _logits_of_stages(model: Any) -> torch.Tensor:
    """Return logits of all stages, of a few tokens."""
    device, fine = model.device, model.fine_acoustics
    few = torch.arange(8, device=device)[None]
    codes = few[..., None].expand(-1, -1, fine.config.n_codes_total)
    made = [stage(few).logits for stage in (model.semantic, model.coarse_acoustics)]
    made.append(fine(fine.config.n_codes_given, codes).logits)
    return torch.cat([each.flatten() for each in made])


def _rows_in_budget(model: Any, spec: Load) -> int:
    """Count the rows that fit into the memory for attention caches; at least one."""
    stages = (model.semantic, model.coarse_acoustics)
    positions = sum(
        stage.config.num_layers * stage.config.hidden_size * stage.config.block_size
        for stage in stages
    )
    row: int = 2 * positions * model.semantic.lm_head.weight.element_size()
    budget = SPEECH_CACHE_BYTES[spec.device] if spec.kv_cache_bytes is None else spec.kv_cache_bytes
    return max(1, budget // row)


def _vits(spec: Load) -> tuple[SpeechModel, int]:
    model = _model(transformers.VitsModel, spec, Path(spec.path), "vits")
    _compute_in_float32(model.decoder)
    return Vits(model, _tokenizer(spec, model)), spec.max_batch or SPEECH_ROWS


def _speecht5(spec: Load) -> tuple[SpeechModel, int]:
    options = spec.speech
    if options is None or options.vocoder is None:
        raise load_failed(
            "This model needs a vocoder: pull one (such as microsoft/speecht5_hifigan), and name "
            "it in this model's setting speech.vocoder."
        )
    model = _model(transformers.SpeechT5ForTextToSpeech, spec, Path(spec.path), "speecht5")
    vocoder = _model(transformers.SpeechT5HifiGan, spec, Path(options.vocoder), "speecht5")
    _compute_in_float32(vocoder)
    files = {path.stem: path for path in Path(spec.path).glob("speaker_embeddings/*.npy")}
    files |= {name: Path(path) for name, path in options.voices.items()}
    voices = read_voices(files, model.config.speaker_embedding_dim)
    if not voices:
        raise load_failed(
            "This model has no voices: name files of speaker vectors (.npy) in its setting "
            "speech.voices."
        )
    return SpeechT5(model, _tokenizer(spec, model), vocoder, voices), spec.max_batch or SPEECH_ROWS


_FAMILIES: dict[str, Callable[[Load], tuple[SpeechModel, int]]] = {
    "bark": _bark,
    "vits": _vits,
    "speecht5": _speecht5,
}


def _model(model_class: Any, spec: Load, folder: Path, family: str) -> Any:
    place = device(spec)
    model, info = model_class.from_pretrained(
        folder,
        config=library_config(folder, model_class.config_class),
        dtype=choose_dtype(family, spec, place),
        device_map=straight_to(place),
        use_safetensors=True,
        variant=variant_of(folder),
        local_files_only=True,
        output_loading_info=True,
    )
    check_missing(info["missing_keys"])
    return model.eval().requires_grad_(False).to(place)


def _compute_in_float32(codec: torch.nn.Module) -> None:
    """Let what makes the sound compute in float32, in whatever format its input comes: it is small,
    half precision may overflow in it, and its output is what people hear."""
    codec.float()
    codec.register_forward_pre_hook(
        lambda _, inputs: tuple(each if each is None else each.float() for each in inputs)
    )


def _tokenizer(spec: Load, model: Any) -> Any:
    return transformers.AutoTokenizer.from_pretrained(
        spec.path, config=model.config, trust_remote_code=False, local_files_only=True
    )
