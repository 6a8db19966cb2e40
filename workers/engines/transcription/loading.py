"""Loads a Whisper with its tokenizer; nothing is fetched or unpickled."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from workers.engines import torch_env
from workers.engines.library_config import library_config
from workers.engines.numbers import check_numbers
from workers.engines.packed_linear import pack_all, unmap
from workers.engines.torch_env import check_missing, library_errors, load_failed
from workers.engines.weight_files import check_sizes, variant_of
from workers.protocol import Load

#: Thresholds of Whisper's authors, for a generation_config.json without them; the first in the
#: library's own measure, which is of tokens.
_COMPRESSION, _LOGPROB, _NO_SPEECH = 1.35, -1.0, 0.6
_TOP_K = 50  #: the library's, of tokens that are drawn


@dataclass(slots=True, frozen=True)
class DecodingConfig:
    """Holds the decoding rules of the model's files; numbers are token ids unless noted."""

    start: int  #: of a transcript
    end: int
    previous: int | None  #: before a prompt
    no_timestamps: int
    languages: dict[str, int]  #: by code; empty for a model of one language
    tasks: dict[str, int]
    suppressed: list[int]
    suppressed_first: list[int]
    alignment_heads: list[tuple[int, int]]  #: (layer, head); empty: word times are not possible
    top_k: int  #: how many tokens are drawn from
    max_tokens: int  #: of a window, with those of its prompt
    compression: float  #: thresholds of an attempt that is good enough
    logprob: float
    no_speech: float
    window: int  #: frames that the encoder reads
    stride: int  #: frames of one of its positions, which is what a timestamp counts

    @property
    def first_timestamp(self) -> int:
        return self.no_timestamps + 1

    @property
    def no_speech_token(self) -> int:
        return self.no_timestamps - 1


@dataclass(slots=True, frozen=True)
class LoadedWhisper:
    model: Any
    tokenizer: Any
    extractor: Any
    generation: Any  #: the library's own form of the rules
    decoding: DecodingConfig
    dtype: torch.dtype
    device: torch.device


def load(spec: Load) -> LoadedWhisper:
    """Load a Whisper. Raises Refused with MODEL_LOAD_FAILED if anything is wrong with its files."""
    folder = Path(spec.path)
    device = torch_env.device(spec)
    dtype = torch_env.choose_dtype("whisper", spec, device)
    with library_errors("The model does not load"):
        _check_files(folder)
        model, missing = _model(folder, dtype, device)
        tokenizer = transformers.WhisperTokenizer.from_pretrained(folder, local_files_only=True)
        extractor = transformers.WhisperFeatureExtractor.from_pretrained(
            folder, local_files_only=True
        )
        decoding = _decoding_config(model)
    check_missing(missing)
    _check_fit(model.config, extractor, decoding)
    model = model.eval().requires_grad_(False).to(device)
    check_numbers(dtype, lambda: _logits_of_noise(model, decoding))
    if device.type == "cpu":
        pack_all(model)
        unmap(model)
    return LoadedWhisper(
        model, tokenizer, extractor, model.generation_config, decoding, dtype, device
    )


def _logits_of_noise(model: Any, decoding: DecodingConfig) -> torch.Tensor:
    """Return the logits of the first token of a window of noise."""
    noise = torch.randn(1, model.config.num_mel_bins, decoding.window)
    start = torch.tensor([[decoding.start]], device=model.device)
    output = model(noise.to(model.device, model.dtype), decoder_input_ids=start)
    logits: torch.Tensor = output.logits
    return logits


def _check_files(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    if config.get("model_type") != "whisper" or "auto_map" in config:
        raise load_failed("Of transcription models, only those of the Whisper family are run.")
    check_sizes(
        folder,
        layers=int(config["encoder_layers"]) + int(config["decoder_layers"]),
        hidden=int(config["d_model"]),
        vocab=int(config["vocab_size"]),
    )


def _model(folder: Path, dtype: torch.dtype, device: torch.device) -> tuple[Any, list[str]]:
    model, info = transformers.WhisperForConditionalGeneration.from_pretrained(
        folder,
        config=library_config(folder, transformers.WhisperConfig),
        dtype=dtype,
        device_map=torch_env.straight_to(device),
        use_safetensors=True,
        variant=variant_of(folder),
        local_files_only=True,
        output_loading_info=True,
    )
    return model, sorted(info["missing_keys"])


def _decoding_config(model: Any) -> DecodingConfig:
    config, found = model.config, model.generation_config
    several = bool(getattr(found, "is_multilingual", True))
    languages = getattr(found, "lang_to_id", None) or {} if several else {}
    encoder = model.model.encoder
    stride = int(encoder.conv1.stride[0] * encoder.conv2.stride[0])
    return DecodingConfig(
        start=int(found.decoder_start_token_id),
        end=int(found.eos_token_id),
        previous=getattr(found, "prev_sot_token_id", None),
        no_timestamps=int(found.no_timestamps_token_id),
        languages={token.strip("<|>"): int(number) for token, number in languages.items()},
        tasks=dict(getattr(found, "task_to_id", None) or {}) if several else {},
        suppressed=list(found.suppress_tokens or []),
        suppressed_first=list(found.begin_suppress_tokens or []),
        alignment_heads=[(a, b) for a, b in getattr(found, "alignment_heads", None) or []],
        top_k=_TOP_K if found.top_k is None else int(found.top_k),
        max_tokens=int(config.max_target_positions),
        compression=_threshold(found, "compression_ratio_threshold", _COMPRESSION),
        logprob=_threshold(found, "logprob_threshold", _LOGPROB),
        no_speech=_threshold(found, "no_speech_threshold", _NO_SPEECH),
        window=stride * int(config.max_source_positions),
        stride=stride,
    )


def _threshold(found: Any, name: str, default: float) -> float:
    value = getattr(found, name, None)
    return default if value is None else float(value)


def _check_fit(config: Any, extractor: Any, decoding: DecodingConfig) -> None:
    """Check that the parts of the model fit together. Raises Refused.

    An id beyond the embedding would end the process of a GPU, and a wrong number of bins every
    request.
    """
    if extractor.feature_size != config.num_mel_bins or extractor.nb_max_frames != decoding.window:
        raise load_failed("The model's preprocessor_config.json does not fit its config.json.")
    used = [decoding.start, decoding.end, decoding.previous or 0, decoding.no_timestamps + 1]
    used += [*decoding.languages.values(), *decoding.tasks.values()]
    used += [*decoding.suppressed, *decoding.suppressed_first]
    heads = [
        layer < config.decoder_layers and head < config.decoder_attention_heads
        for layer, head in decoding.alignment_heads
    ]
    if max(used) >= config.vocab_size or min(used) < 0 or not all(heads):
        raise load_failed("The model's generation_config.json does not fit its config.json.")
