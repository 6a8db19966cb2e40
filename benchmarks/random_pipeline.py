"""Makes Stable Diffusion pipelines with random weights, once.

``tiny`` loads in a moment and ``small`` is quick on a CPU; ``sdxl`` has the real model's shape (2.6
billion parameters in its denoiser), in bfloat16.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

_LETTERS = [chr(code) for code in range(33, 127)]
_SDXL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 1280 + 6 * 256,
}
_SMALL_UNET: dict[str, Any] = {
    **_SDXL_UNET,
    "sample_size": 32,
    "block_out_channels": (64, 128, 128),
    "transformer_layers_per_block": (1, 1, 1),
    "attention_head_dim": (2, 4, 4),
    "cross_attention_dim": 128,
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": 64 + 6 * 32,
}
_TINY_UNET: dict[str, Any] = {
    **_SMALL_UNET,
    "block_out_channels": (32, 64, 64),
    "attention_head_dim": (1, 2, 2),
    "cross_attention_dim": 64,
    "addition_time_embed_dim": 16,
    "projection_class_embeddings_input_dim": 32 + 6 * 16,
}
#: denoiser, decoder's channels, widths of the two encoders
_SHAPES: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[int, int]]] = {
    "tiny": (_TINY_UNET, (32, 32, 32, 32), (32, 32)),
    "small": (_SMALL_UNET, (32, 32, 64, 64), (64, 64)),
    "sdxl": (_SDXL_UNET, (128, 256, 512, 512), (768, 1280)),
}


def make_pipeline(folder: Path, shape: str, device: str = "cpu") -> Path:
    """Return the folder of a pipeline of that shape, below ``folder``. ``device`` draws the
    weights."""
    target = folder / f"random-{shape}"
    if (target / "model_index.json").exists():
        return target
    unet, channels, widths = _SHAPES[shape]
    dtype = torch.bfloat16 if shape == "sdxl" else torch.float32
    # Made outside of the device's context: it computes with NumPy's arrays, which lie in memory.
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            models = _models(unet, channels, widths)
    finally:
        torch.set_default_dtype(before)
    pipeline = StableDiffusionXLPipeline(
        **models, tokenizer=_tokenizer(), tokenizer_2=_tokenizer(), scheduler=scheduler
    )
    pipeline.save_pretrained(target)
    return target


def _models(
    unet: dict[str, Any], channels: tuple[int, ...], widths: tuple[int, int]
) -> dict[str, torch.nn.Module]:
    """Return the parts with weights, by the names of the pipeline's arguments."""
    return {
        "vae": AutoencoderKL(
            block_out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=1024,
            scaling_factor=0.13025,
        ),
        "text_encoder": CLIPTextModel(_encoder(widths[0], 12)),
        "text_encoder_2": CLIPTextModelWithProjection(_encoder(widths[1], 32)),
        "unet": UNet2DConditionModel(in_channels=4, out_channels=4, **unet),
    }


def _encoder(width: int, layers: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers if width > 64 else 2,
        num_attention_heads=max(1, width // 64),
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def _tokenizer() -> CLIPTokenizer:
    tokens = ["<|startoftext|>", "<|endoftext|>", *_LETTERS, *(f"{each}</w>" for each in _LETTERS)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
