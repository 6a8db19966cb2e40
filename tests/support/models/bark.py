"""A tiny Bark of the real classes with random weights and two voices, as a repository on disk."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BarkConfig,
    BarkModel,
    EncodecConfig,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.bark import BarkCoarseConfig, BarkFineConfig, BarkSemanticConfig
from transformers.models.bark.generation_configuration_bark import (
    BarkCoarseGenerationConfig,
    BarkFineGenerationConfig,
    BarkSemanticGenerationConfig,
)

VOICES = ("v2/en_speaker_0", "v2/en_speaker_1", "v2/de_speaker_0")
_SEMANTIC, _CODES = 60, 32
_GPT: dict[str, Any] = {
    "num_layers": 2,
    "num_heads": 2,
    "hidden_size": 24,
    "block_size": 256,
    "bias": False,
    "dropout": 0.0,
}
_INPUT = 48  #: tokens of text, and of a voice, that the first stage reads


def make(folder: Path, *, sampled: bool = True, tokens: int = 40) -> Path:
    """Write it into the folder; ``sampled``: the stages draw, as in the real one.

    A sentence has so many semantic ``tokens`` at most: fewer are enough for tests that do not
    compare with the library, and take less time.
    """
    torch.manual_seed(11)
    model = BarkModel(_config())
    with torch.no_grad():
        _sharpen(model)
    model.generation_config = GenerationConfig()  # a Bark's own cannot be saved before it was read
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "generation_config.json").write_text(
        json.dumps(_generation(sampled=sampled, tokens=tokens))
    )
    _tokenizer().save_pretrained(folder)
    _write_voices(folder)
    return folder


def _sharpen(model: Any) -> None:
    """Scale fresh weights, which hardly react to their input, and fill a codec's tables, which are
    zero until trained: else all texts and all tokens would sound alike."""
    for stage in (model.semantic, model.coarse_acoustics):
        stage.lm_head.weight.mul_(20)
        stage.input_embeds_layer.weight.mul_(20)
        for block in stage.layers:
            block.attn.att_proj.weight.mul_(10)
            block.attn.out_proj.weight.mul_(60)
    for layer in model.codec_model.quantizer.layers:
        layer.codebook.embed.normal_()


def _config() -> BarkConfig:
    return BarkConfig(
        semantic_config=BarkSemanticConfig(
            **_GPT, input_vocab_size=300, output_vocab_size=64
        ).to_dict(),
        coarse_acoustics_config=BarkCoarseConfig(
            **_GPT, input_vocab_size=140, output_vocab_size=140
        ).to_dict(),
        fine_acoustics_config=BarkFineConfig(
            **{**_GPT, "block_size": 64},
            input_vocab_size=_CODES + 1,
            output_vocab_size=_CODES,
            n_codes_total=8,
            n_codes_given=1,
        ).to_dict(),
        codec_config=EncodecConfig(
            sampling_rate=24_000,
            num_filters=2,
            hidden_size=16,
            codebook_size=_CODES,
            codebook_dim=16,
            upsampling_ratios=[8, 5, 4, 2],
            target_bandwidths=[6.0],
            num_lstm_layers=1,
        ).to_dict(),
    )


def _generation(*, sampled: bool, tokens: int) -> dict[str, Any]:
    return {
        "model_type": "bark",
        "sample_rate": 24_000,
        "codebook_size": _CODES,
        "semantic_config": BarkSemanticGenerationConfig(
            eos_token_id=_SEMANTIC,
            max_new_tokens=tokens,
            text_encoding_offset=64,
            text_pad_token=290,
            semantic_infer_token=291,
            semantic_vocab_size=_SEMANTIC,
            semantic_pad_token=_SEMANTIC,
            max_input_semantic_length=_INPUT,
            do_sample=sampled,
            temperature=0.7 if sampled else 1.0,
        ).to_dict(),
        "coarse_acoustics_config": BarkCoarseGenerationConfig(
            coarse_semantic_pad_token=130,
            coarse_infer_token=131,
            max_coarse_input_length=_INPUT,
            max_coarse_history=60,
            sliding_window_len=20,
            do_sample=sampled,
            temperature=0.7 if sampled else 1.0,
        ).to_dict(),
        "fine_acoustics_config": BarkFineGenerationConfig(
            temperature=0.5 if sampled else 1.0,
            max_fine_history_length=32,
            max_fine_input_length=64,
        ).to_dict(),
    }


def _tokenizer() -> PreTrainedTokenizerFast:
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = {token: number for number, token in enumerate(["[PAD]", "[UNK]", *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("", "isolated")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=256
    )


def _write_voices(folder: Path) -> None:
    random = np.random.default_rng(5)
    index: dict[str, Any] = {"repo_or_path": "somebody/bark"}
    for voice in VOICES:
        frames = 30
        arrays = {
            "semantic_prompt": random.integers(0, _SEMANTIC, 25),
            "coarse_prompt": random.integers(0, _CODES, (2, frames)),
            "fine_prompt": random.integers(0, _CODES, (8, frames)),
        }
        index[voice] = {}
        for part, array in arrays.items():
            path = folder / "speaker_embeddings" / f"{voice}_{part}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, array.astype(np.int64))
            index[voice][part] = str(path.relative_to(folder))
    (folder / "speaker_embeddings_path.json").write_text(json.dumps(index))
