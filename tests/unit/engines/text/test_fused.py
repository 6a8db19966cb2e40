"""The fused decoder computes what the library's own classes do, with each class's peculiarities."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support.text_harness import farthest
from workers.engines.text import attention
from workers.engines.text.batch import BatchBuilder
from workers.engines.text.blocks import BlockAllocator
from workers.engines.text.cache import PagedCache
from workers.engines.text.decoder import LibraryDecoder
from workers.engines.text.fused import FusedDecoder, can_fuse, may_fuse
from workers.engines.text.fused_layers import CLASSES
from workers.engines.text.plan import Chunk, Plan
from workers.engines.text.self_check import compute

BLOCKS, BLOCK_SIZE = 32, 4
CPU = torch.device("cpu")
#: Of several lengths: more than a window, and rows of one step that differ.
LENGTHS = (5, 23, 38)
_SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
_KINDS = ["sliding_attention", "full_attention"] * 2
_ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 900.0, "factor": 4.0},
}
_SLIDING = {"sliding_window": 7, "layer_types": _KINDS}
#: What is peculiar to each, by the library's names, set so that leaving it out is seen.
SETTINGS: dict[str, dict[str, Any]] = {
    "cohere": {"use_qk_norm": True, "logit_scale": 0.3},
    "cohere2": {**_SLIDING, "logit_scale": 0.3},
    "exaone4": {**_SLIDING, "sliding_window_pattern": 2},
    "gemma": {},
    "gemma2": {
        **_SLIDING,
        "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3_text": {
        **_SLIDING,
        "query_pre_attn_scalar": 20,
        "rope_parameters": _ROPES,
        "attn_logit_softcapping": 2.0,  # which this class does not compute
    },
    "granite": {
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "logits_scaling": 2.0,
    },
    "llama": {
        "attention_bias": True,
        "hidden_act": "gelu",
        "logits_scaling": 2.0,  # which this class does not compute, nor this:
        "final_logit_softcapping": 3.0,
    },
    "ministral": _SLIDING,
    "mistral": {"sliding_window": 7},
    "olmo2": {},
    "olmo3": {**_SLIDING, "rope_parameters": _ROPES},
    "phi3": {
        "sliding_window": 7,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 100.0,
            "partial_rotary_factor": 0.5,
        },
    },
    "qwen2": {},
    "qwen3": {},
    "seed_oss": {"attention_bias": True, "attention_out_bias": False},
    "smollm3": {"no_rope_layers": [1, 0, 1, 1]},
}


def model_of(family: str) -> Any:
    """Make a tiny model, with norms whose weights are not all alike."""
    torch.manual_seed(len(family))
    config = AutoConfig.for_model(family, **{**_SHAPE, **SETTINGS[family]}, initializer_range=0.3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.requires_grad_(False)


@pytest.mark.parametrize("family", sorted(SETTINGS))
@torch.inference_mode()
def test_fused_decoder_computes_the_library_s_logits(family: str) -> None:
    _compare_with_library(family)


def _compare_with_library(family: str) -> None:
    model = model_of(family)
    rows = [[(11 + 7 * place + 3 * n) % 96 for place in range(n)] for n in LENGTHS]
    expected = [model(input_ids=torch.tensor([ids]), use_cache=False).logits[0] for ids in rows]
    library = LibraryDecoder(model)
    shapes = library.probe()
    library.close()
    assert may_fuse(model.config)
    assert can_fuse(model)
    decoder = FusedDecoder(model)
    cache = PagedCache(shapes, BLOCKS, BLOCK_SIZE, dtype=torch.float32)
    windows = {shape.window for shape in shapes}
    builder = BatchBuilder(BLOCK_SIZE, windows, dtype=torch.float32, device=CPU)

    def run(plan: Plan) -> tuple[list[Chunk], torch.Tensor]:
        batch = builder.build(plan)
        return batch.order, decoder.forward(batch, cache)

    found = compute(run, rows, BlockAllocator(BLOCKS, BLOCK_SIZE))
    assert farthest(found, expected) < 1e-5 * torch.cat(expected).std().item() + 1e-5


@pytest.mark.parametrize("most", [1, 500])
@torch.inference_mode()
def test_soft_caps_of_long_prompts_are_computed_some_rows_at_a_time(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_MOST_SCORES", most)
    written, largest = attention._written_out, 0

    def noting(query: Any, key: Any, *others: Any) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, query[..., 0].numel() * key.shape[-2])
        return written(query, key, *others)

    monkeypatch.setattr(attention, "_written_out", noting)
    _compare_with_library("gemma2")
    one_row = 6 * max(LENGTHS)
    assert largest <= max(most, one_row * len(LENGTHS)), "decode rows are computed together"


def test_fused_classes_are_all_compared_above() -> None:
    known: Any = AutoModelForCausalLM._model_mapping
    kinds = [type(AutoConfig.for_model(family)) for family in SETTINGS]
    assert {known[kind] for kind in kinds} == set(CLASSES)
