"""Makes a Whisper with random weights, once: tiny, or of large-v3's shape.

Random weights never end a window, so every window has its full length. That is bounded here to
what people say in 30 seconds (``POSITIONS``), where the real model has room for 448.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, pre_tokenizers
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

#: Tokens of a window, with the four before its first own one.
POSITIONS = {"tiny": 16, "large-v3": 128}
_TIMESTAMPS = 1501
_MARKS = [
    "<|startoftranscript|>",
    *(f"<|{code}|>" for code in LANGUAGES),
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
]
#: Thresholds that every attempt meets, so that the first one is taken.
LENIENT = {
    "compression_ratio_threshold": 1e9,
    "logprob_threshold": -1e9,
    "no_speech_threshold": 1.0,
}


@dataclass(frozen=True, slots=True)
class _Shape:
    """Holds the sizes; ``words`` is the number of tokens before the end token."""

    width: int
    layers: tuple[int, int]  #: of the encoder and the decoder
    heads: int
    bins: int  #: mel bins
    words: int

    @property
    def ids(self) -> dict[str, int]:
        """Return the numbers of the tokens that are no text."""
        return {mark: self.words + 1 + number for number, mark in enumerate(_MARKS)}

    @property
    def first_timestamp(self) -> int:
        return self.words + 1 + len(_MARKS)

    @property
    def vocabulary(self) -> int:
        return self.first_timestamp + _TIMESTAMPS


_SHAPES = {
    "tiny": _Shape(width=16, layers=(1, 2), heads=2, bins=80, words=256),
    "large-v3": _Shape(width=1280, layers=(32, 32), heads=20, bins=128, words=50_257),
}


def make_whisper(folder: Path, shape: str, device: str = "cpu") -> Path:
    """Return the folder of a Whisper of that shape, below ``folder``.

    ``device`` draws the weights. They are float32 from a CPU, and float16 from a card.
    """
    target = folder / f"random-whisper-{shape}"
    if (target / "preprocessor_config.json").exists():  # written last
        return target
    sizes = _SHAPES[shape]
    torch.manual_seed(0)
    with torch.device(device):
        model = WhisperForConditionalGeneration(_config(sizes, POSITIONS[shape]))
    if device != "cpu":
        model = model.to(torch.float16)
    model.generation_config = GenerationConfig(**_generation(sizes, POSITIONS[shape]))
    model.save_pretrained(target)
    extractor = WhisperFeatureExtractor(feature_size=sizes.bins)
    WhisperProcessor(extractor, _tokenizer(sizes)).save_pretrained(target)
    extractor.save_pretrained(target)
    return target


def _config(shape: _Shape, positions: int) -> WhisperConfig:
    return WhisperConfig(
        vocab_size=shape.vocabulary,
        num_mel_bins=shape.bins,
        d_model=shape.width,
        encoder_layers=shape.layers[0],
        decoder_layers=shape.layers[1],
        encoder_attention_heads=shape.heads,
        decoder_attention_heads=shape.heads,
        encoder_ffn_dim=4 * shape.width,
        decoder_ffn_dim=4 * shape.width,
        max_target_positions=positions,
        decoder_start_token_id=shape.ids["<|startoftranscript|>"],
        bos_token_id=shape.words,
        eos_token_id=shape.words,
        pad_token_id=shape.words,
    )


def _generation(shape: _Shape, positions: int) -> dict[str, Any]:
    """Make a window begin with the timestamp 0.00; after it only text can come, to
    the last token."""
    ids = shape.ids
    marks = [number for mark, number in ids.items() if mark != "<|notimestamps|>"]
    never = [shape.words, *marks, *range(shape.first_timestamp + 1, shape.vocabulary)]
    return {
        "decoder_start_token_id": ids["<|startoftranscript|>"],
        "bos_token_id": shape.words,
        "eos_token_id": shape.words,
        "pad_token_id": shape.words,
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "prev_sot_token_id": ids["<|startofprev|>"],
        "max_initial_timestamp_index": 50,
        "max_length": positions,
        "suppress_tokens": never,
        "begin_suppress_tokens": [shape.words],
        "is_multilingual": True,
        "return_timestamps": False,
        "lang_to_id": {f"<|{code}|>": ids[f"<|{code}|>"] for code in LANGUAGES},
        "task_to_id": {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")},
        **LENIENT,
    }


def _tokenizer(shape: _Shape) -> WhisperTokenizer:
    """Make a tokenizer of one token a byte, and made-up words."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"\u0120filler{number}" for number in range(shape.words - len(letters))]
    vocabulary = {token: number for number, token in enumerate([*letters, *words])}
    vocabulary["<|endoftext|>"] = shape.words
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": list(_MARKS)})
    times = [AddedToken(f"<|{number * 0.02:.2f}|>", special=False) for number in range(_TIMESTAMPS)]
    tokenizer.add_tokens(times)
    assert tokenizer.convert_tokens_to_ids("<|30.00|>") == shape.vocabulary - 1
    return tokenizer
