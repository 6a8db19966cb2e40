"""A tiny Whisper of the real classes with random weights, as a repository on disk."""

from pathlib import Path
from string import ascii_letters
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

LANGUAGES = ("en", "de", "zh")
POSITIONS = 48  #: of the decoder: short windows, so that tests are
_LETTERS = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġa", "Ġb", "Ġc", "Ġd"]
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
END = len(_LETTERS)
IDS = {mark: END + 1 + number for number, mark in enumerate(_MARKS)}
FIRST_TIMESTAMP = IDS["<|notimestamps|>"] + 1
VOCABULARY = FIRST_TIMESTAMP + 1501
#: What a reader could not read, and what is never said.
_SUPPRESSED = [
    number for number, token in enumerate(_LETTERS) if token.lstrip("Ġ") not in ascii_letters
] + [IDS[mark] for mark in _MARKS[:-1]]
#: Thresholds that every attempt meets, so that the first one, which is greedy, is taken.
LENIENT: dict[str, Any] = {
    "compression_ratio_threshold": 1e9,
    "logprob_threshold": -1e9,
    "no_speech_threshold": 1.0,
}


def make(folder: Path, *, several: bool = True, **generation: Any) -> Path:
    """Write it into the folder. ``several`` languages, or English only; ``generation``: more
    fields of generation_config.json."""
    torch.manual_seed(3)
    model = WhisperForConditionalGeneration(_config())
    with torch.no_grad():  # opinions about the sound, and about what comes next
        for name, parameter in model.named_parameters():
            if "layer_norm" not in name and parameter.dim() > 1:
                parameter.normal_(0.0, 0.3)
        words = model.proj_out.weight  # there are six times as many timestamps as letters
        words[:END] *= 3.0
        words[END - 4 : END] *= 2.0  # what begins words
        words[END] *= 3.0
        words[FIRST_TIMESTAMP:] *= 2.0
    model.generation_config = GenerationConfig(**{**_generation(several=several), **generation})
    model.save_pretrained(folder, safe_serialization=True)
    WhisperProcessor(WhisperFeatureExtractor(), _tokenizer()).save_pretrained(folder)
    return folder


def _config() -> WhisperConfig:
    return WhisperConfig(
        vocab_size=VOCABULARY,
        num_mel_bins=80,
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_target_positions=POSITIONS,
        decoder_start_token_id=IDS["<|startoftranscript|>"],
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=END,
        tie_word_embeddings=False,
    )


def _generation(*, several: bool) -> dict[str, Any]:
    common = {
        "decoder_start_token_id": IDS["<|startoftranscript|>"],
        "bos_token_id": END,
        "eos_token_id": END,
        "pad_token_id": END,
        "no_timestamps_token_id": IDS["<|notimestamps|>"],
        "prev_sot_token_id": IDS["<|startofprev|>"],
        "max_initial_timestamp_index": 50,
        "max_length": POSITIONS,
        "suppress_tokens": _SUPPRESSED,
        "begin_suppress_tokens": [END, *range(FIRST_TIMESTAMP + 51, VOCABULARY)],
        "alignment_heads": [[0, 1], [1, 0]],
        "is_multilingual": several,
        "return_timestamps": False,
    }
    if several:
        common["lang_to_id"] = {f"<|{code}|>": IDS[f"<|{code}|>"] for code in LANGUAGES}
        common["task_to_id"] = {task: IDS[f"<|{task}|>"] for task in ("transcribe", "translate")}
    return common


def _tokenizer() -> WhisperTokenizer:
    """Return a tokenizer with one token a byte, and four that begin words."""
    vocabulary = {token: number for number, token in enumerate(_LETTERS)}
    vocabulary["<|endoftext|>"] = END
    merges = [("Ġ", token[1]) for token in _LETTERS if len(token) == 2]
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": list(_MARKS)})
    marks = [AddedToken(f"<|{number * 0.02:.2f}|>", special=False) for number in range(1501)]
    tokenizer.add_tokens(marks)
    assert tokenizer.convert_tokens_to_ids("<|30.00|>") == VOCABULARY - 1
    return tokenizer
