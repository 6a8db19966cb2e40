"""Makes a Bark with random weights, once: small for a CPU, or of the real shape.

``least`` loads in a moment; ``bark`` says sentences of the real model's full length,
``bark_short`` of four seconds, as ``bark_small`` does, which has the shape of suno/bark-small.
"""

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

VOICE = "v2/en_speaker_0"
_VOICE_TOKENS = {"semantic_prompt": (400,), "coarse_prompt": (2, 600), "fine_prompt": (8, 600)}
#: layers, heads, width of each stage; tokens of meaning in a sentence, 50 a second
_SHAPES = {
    "least": (1, 2, 32, 25),
    "tiny": (4, 4, 128, 100),
    "small": (6, 6, 384, 300),
    "bark_small": (12, 12, 768, 200),
    "bark": (24, 16, 1024, 768),
    "bark_short": (24, 16, 1024, 200),
}
#: the codec of the least shape; the others have the real one
_LEAST_CODEC = {"num_filters": 4, "hidden_size": 16, "codebook_dim": 16, "num_lstm_layers": 1}


def make_bark(folder: Path, shape: str, device: str = "cpu") -> Path:
    """Return the folder of a Bark of that shape, below ``folder``.

    ``device`` draws the weights. They are float32 from a CPU, and bfloat16 from a card.
    """
    target = folder / f"random-bark-{shape}-{_SHAPES[shape][3]}"
    if (target / "config.json").exists():
        return target
    layers, heads, width, longest = _SHAPES[shape]
    torch.manual_seed(0)
    with torch.device(device):
        model = _model(layers, heads, width)
    if device != "cpu":
        model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig()
    model.save_pretrained(target)
    generation = {
        "model_type": "bark",
        "sample_rate": 24_000,
        "codebook_size": 1024,
        "semantic_config": BarkSemanticGenerationConfig(
            do_sample=True, temperature=0.7, max_new_tokens=longest, semantic_pad_token=10_000
        ).to_dict(),
        "coarse_acoustics_config": BarkCoarseGenerationConfig(
            do_sample=True, temperature=0.7
        ).to_dict(),
        "fine_acoustics_config": BarkFineGenerationConfig(temperature=0.5).to_dict(),
    }
    (target / "generation_config.json").write_text(json.dumps(generation))
    letters = {chr(code): code - 31 for code in range(33, 127)}
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, **letters}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("", "isolated")]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(target)
    _write_voice(target)
    return target


def _model(layers: int, heads: int, width: int) -> BarkModel:
    gpt: dict[str, Any] = {"num_layers": layers, "num_heads": heads, "hidden_size": width}
    gpt |= {"bias": False, "dropout": 0.0}
    return BarkModel(
        BarkConfig(
            semantic_config=BarkSemanticConfig(
                **gpt, input_vocab_size=129_600, output_vocab_size=10_048
            ).to_dict(),
            coarse_acoustics_config=BarkCoarseConfig(
                **gpt, input_vocab_size=12_096, output_vocab_size=12_096
            ).to_dict(),
            fine_acoustics_config=BarkFineConfig(
                **gpt, input_vocab_size=1056, output_vocab_size=1056
            ).to_dict(),
            codec_config=EncodecConfig(**(_LEAST_CODEC if width == 32 else {})).to_dict(),
        )
    )


def _write_voice(target: Path) -> None:
    """Write one preset, as long as the published ones are."""
    random = np.random.default_rng(1)
    index: dict[str, Any] = {"repo_or_path": str(target), VOICE: {}}
    for part, shape in _VOICE_TOKENS.items():
        path = target / "speaker_embeddings" / f"{VOICE}_{part}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        most = 10_000 if part == "semantic_prompt" else 1024
        np.save(path, random.integers(0, most, shape))
        index[VOICE][part] = str(path.relative_to(target))
    (target / "speaker_embeddings_path.json").write_text(json.dumps(index))
