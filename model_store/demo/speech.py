"""Makes ``demo-speech``: a tiny Bark whose tokenizer, voices and weights are made here."""

from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from model_store.demo.weights import write_json, write_model

VOICES = tuple(f"v2/{language}_speaker_{n}" for language in ("de", "en", "fr") for n in range(2))
_SEED = 20261124
_SEMANTIC, _CODES, _FRAMES = 100, 64, 45
#: Makes the babble as loud as speech is.
_SCALES = {
    "codec_model.decoder.layers.15.conv.parametrizations.weight.original0": 0.5,
}


def make_speech_model(folder: Path) -> None:
    """Write config, tokenizer, voices and weights in the layout of Bark's repositories."""
    write_model(folder, "speech.json", {"model": "model.safetensors"}, _SCALES)
    _write_tokenizer(folder)
    _write_voices(folder)


def _write_tokenizer(folder: Path) -> None:
    """Write a tokenizer with one token per byte, so that it encodes every text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: number for number, word in enumerate(["[PAD]", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"},
    )


def _write_voices(folder: Path) -> None:
    random = np.random.default_rng(_SEED)
    index: dict[str, Any] = {"repo_or_path": "."}
    for voice in VOICES:
        arrays = {
            "semantic_prompt": random.integers(0, _SEMANTIC, 30),
            "coarse_prompt": random.integers(0, _CODES, (2, _FRAMES)),
            "fine_prompt": random.integers(0, _CODES, (8, _FRAMES)),
        }
        index[voice] = {}
        for part, array in arrays.items():
            path = folder / "speaker_embeddings" / f"{voice}_{part}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, array.astype(np.int64))
            index[voice][part] = str(path.relative_to(folder))
    write_json(folder / "speaker_embeddings_path.json", index)
