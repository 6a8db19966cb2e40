"""Tiny models that read pictures, with the library's processors of images."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from tests.support.models.text import BOS, EOS, VOCAB, train_tokenizer
from workers.engines.text.pictures import class_of

_TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}
_TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.3,
}
#: Turns of a chat whose contents are texts or lists of parts; a picture is one token, or three.
_TURNS = (
    "{% for message in messages %}[{{ message['role'] }}]"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}PICTURE"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
_QWEN = "<|vision_start|><|image_pad|><|vision_end|>"
_QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_MROPE = {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10000.0}
_QWEN_SIZES: dict[str, Any] = {
    "size": {"shortest_edge": 28 * 28, "longest_edge": 84 * 84},
    "patch_size": 14,
    "merge_size": 2,
}
_PATCHES = {"size": {"height": 28, "width": 28}}


def _qwen(tower: dict[str, Any], **text: Any) -> dict[str, Any]:
    return {
        "text_config": {**_TEXT, "rope_parameters": _MROPE, **text},
        "vision_config": {"patch_size": 14, "spatial_merge_size": 2, **tower},
    }


_CONFIGS: Mapping[str, dict[str, Any]] = {
    "qwen2_5_vl": _qwen(
        {
            "depth": 2,
            "num_heads": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 48,
            "fullatt_block_indexes": [1],
            "window_size": 56,
        }
    ),
    "qwen3_vl": _qwen(
        {
            "depth": 2,
            "num_heads": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 48,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 16,
        },
        rope_parameters={**_MROPE, "mrope_interleaved": True},
    ),
    "llava": {
        "text_config": {"model_type": "llama", **_TEXT},
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": 28,
            "patch_size": 14,
            "projection_dim": 32,
            **_TOWER,
        },
        "image_seq_length": 4,
    },
    "pixtral": {
        "text_config": {"model_type": "mistral", **_TEXT},
        "vision_config": {"model_type": "pixtral", "image_size": 56, "patch_size": 14, **_TOWER},
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    },
    "smolvlm": {
        "text_config": {"model_type": "llama", **_TEXT, "tie_word_embeddings": False},
        "vision_config": {"image_size": 56, "patch_size": 14, **_TOWER},
        "scale_factor": 2,
        "tie_word_embeddings": False,
    },
    # What stands before the answer looks at all of itself.
    "paligemma": {
        "text_config": {"model_type": "gemma", **_TEXT, "num_image_tokens": 4},
        "vision_config": {
            "model_type": "siglip_vision_model",
            "image_size": 28,
            "patch_size": 14,
            "projection_dim": 48,
            "vision_use_head": False,
            **_TOWER,
        },
        "projection_dim": 48,
    },
    "gemma3": {
        "text_config": {
            **_TEXT,
            "sliding_window": 16,
            "query_pre_attn_scalar": 12,
            "tie_word_embeddings": False,
        },
        "tie_word_embeddings": False,
        "vision_config": {
            "model_type": "siglip_vision_model",
            "image_size": 28,
            "patch_size": 14,
            **_TOWER,
        },
        "mm_tokens_per_image": 4,
    },
}
_TOKENS: Mapping[str, dict[str, str]] = {
    "llava": {"image_token": "<image>"},
    "paligemma": {"image_token": "<image>"},
    "pixtral": {"image_token": "[IMG]", "break": "[IMG_BREAK]", "end": "[IMG_END]"},
    "smolvlm": {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        **{f"part_{n}": f"<row_{n // 2 + 1}_col_{n % 2 + 1}>" for n in range(4)},
    },
    "gemma3": {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    },
}
_PICTURES = {
    "llava": "<image>",
    "paligemma": "<image>",
    "pixtral": "[IMG]",
    "smolvlm": "<image>",
    "gemma3": "<start_of_image>",
}
_IMAGES: Mapping[str, dict[str, Any]] = {
    "llava": {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}},
    "pixtral": {"size": {"longest_edge": 56}, "patch_size": 14},
    "smolvlm": {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}},
    "paligemma": {**_PATCHES, "image_seq_length": 4},
    "gemma3": _PATCHES,
}
_PROCESSORS: Mapping[str, dict[str, Any]] = {
    "llava": {
        "patch_size": 14,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    },
    "pixtral": {"processor_class": "PixtralProcessor", "patch_size": 14},
    "smolvlm": {"image_seq_len": 4},
    "gemma3": {"image_seq_length": 4},
}
FAMILIES = tuple(_CONFIGS)


def make_vision_model(family: str, folder: Path) -> Path:
    """Write a model with its tokenizer and processor to ``folder``."""
    tokenizer = _tokenizer(family)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in tokenizer.all_special_tokens}
    kind = "llava" if family == "pixtral" else family
    config = AutoConfig.for_model(kind, **{**_CONFIGS[family], **_special(family, ids)})
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    torch.manual_seed(sum(family.encode()))
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    images = getattr(transformers, IMAGE_PROCESSOR_MAPPING_NAMES[family]["pil"])
    images(**_IMAGES.get(family, _QWEN_SIZES)).save_pretrained(folder)
    if settings := _PROCESSORS.get(family):
        (folder / "processor_config.json").write_text(json.dumps(settings))
    return folder


def library_processor(family: str, folder: Path) -> Any:
    """Return the library's own processor of a model, as far as it needs no library of videos."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    known = class_of(PROCESSOR_MAPPING_NAMES[family])
    images = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    own = type(known.__name__, (known,), {"check_argument_for_proper_class": lambda *_: None})
    parts = {"image_processor": images, "tokenizer": tokenizer}
    given = {name: parts.get(name) for name in known.get_attributes()}
    settings = dict(_PROCESSORS.get(family, {}))
    settings.pop("processor_class", None)
    return own(**given, **settings)


def png(seed: int, size: tuple[int, int] = (60, 40), form: str = "PNG") -> bytes:
    """Return a picture of noise."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(out, format=form)
    return out.getvalue()


def _tokenizer(family: str) -> PreTrainedTokenizerFast:
    tokenizer = train_tokenizer(None)
    picture = _PICTURES.get(family, _QWEN)
    named = _TOKENS.get(family, {})
    tokens = [*named.values()] or [*_QWEN_TOKENS]
    tokenizer.add_special_tokens({"extra_special_tokens": tokens})
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
        extra_special_tokens=named or tokens,
    )
    tokenizer.chat_template = _TURNS.replace("PICTURE", picture)
    return tokenizer


def _special(family: str, ids: Mapping[str, int]) -> dict[str, Any]:
    if family in ("llava", "pixtral", "paligemma"):
        return {"image_token_index": ids[_PICTURES[family]]}
    if family == "smolvlm":
        return {"image_token_id": ids["<image>"]}
    if family == "gemma3":
        return {
            "boi_token_index": ids["<start_of_image>"],
            "eoi_token_index": ids["<end_of_image>"],
            "image_token_index": ids["<image_soft_token>"],
        }
    return {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }
