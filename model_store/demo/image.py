"""Makes ``demo-image``: a tiny Stable Diffusion whose tokenizer and weights are made here."""

from pathlib import Path

from tokenizers import pre_tokenizers

from model_store.demo.weights import write_json, write_model

_PROMPT_TOKENS = 77
_WEIGHTS = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}
_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.42.1",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"
#: Makes the colours strong: random decoders otherwise paint everything a middle grey.
_SCALES = {"decoder.conv_out.weight": 1.2}


def make_image_model(folder: Path) -> None:
    """Write a pipeline in diffusers' layout: eight pixels a latent, attention at the lowest size
    only, so that large pictures stay bearable on a CPU."""
    write_json(folder / "model_index.json", _INDEX)
    write_model(folder, "image.json", _WEIGHTS, _SCALES)
    _write_tokenizer(folder / "tokenizer")


def _write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of bytes, inside and at the end of words, so that it encodes every text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), _BEGIN, _END]
    write_json(folder / "vocab.json", {word: number for number, word in enumerate(words)})
    (folder / "merges.txt").write_text("#version: 0.2\n")
    marks = {"bos_token": _BEGIN, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    write_json(folder / "special_tokens_map.json", marks)
    write_json(
        folder / "tokenizer_config.json",
        {**marks, "tokenizer_class": "CLIPTokenizer", "model_max_length": _PROMPT_TOKENS},
    )
