"""Steps on a device without numbers (meta): a tensor that is made on the CPU raises there, as it
does on a card, and so does whatever the host reads back."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma3TextConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen3Config,
)

from workers.engines.eight_bit_linear import EightBitLinear
from workers.engines.four_bit_linear import FourBitLinear
from workers.engines.text.batch import BatchBuilder, Carry
from workers.engines.text.cache import LayerShape, PagedCache
from workers.engines.text.decode_graphs import DecodeGraphs
from workers.engines.text.decoder import Decoder, LibraryDecoder
from workers.engines.text.fused import FusedDecoder
from workers.engines.text.grammar.mask import masked
from workers.engines.text.loading import keep_rotation
from workers.engines.text.lora_layers import LoraRows, LoraStack
from workers.engines.text.plan import Chunk, Plan, Sequence
from workers.engines.text.sampler import Sampler
from workers.engines.text.sampling_params import SamplingParams, upload
from workers.protocol import Sampling

META = torch.device("meta")
BLOCK, VOCAB = 16, 300
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
#: The library's rotation would look for the largest position in each step.
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
CONFIGS = [
    LlamaConfig(**SHAPE),
    Qwen3Config(**SHAPE),
    LlamaConfig(**SHAPE, rope_parameters=DYNAMIC),
    Gemma3TextConfig(**SHAPE, sliding_window=8),
    CohereConfig(**SHAPE),
]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_p": 0.95},
    {"temperature": 1.2, "top_k": 40, "min_p": 0.01},
    {"temperature": 1.0, "top_k": 100, "top_p": 0.9, "repetition_penalty": 1.2},
    {"presence_penalty": 0.5, "frequency_penalty": 0.2, "logit_bias": {7: 2.0}},
    {"temperature": 0.9, "top_p": 0.9, "logprobs": 4},
    {"temperature": 1.0, "typical_p": 0.5, "min_tokens": 3},
]


def decoders(config: PretrainedConfig) -> Iterator[tuple[Decoder, list[LayerShape]]]:
    """Yield the library's decoder of a model without numbers, then the fused one."""
    with META:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.eval().requires_grad_(False)
    keep_rotation(model)
    library = LibraryDecoder(model)
    shapes = library.probe()
    yield library, shapes
    library.close()
    yield FusedDecoder(model), shapes


@pytest.mark.parametrize("config", CONFIGS, ids=lambda each: each.model_type)
@torch.inference_mode()
def test_step_makes_all_its_tensors_on_its_device(config: PretrainedConfig) -> None:
    """A row alone, one with drafts, one whose token only the device knows, pieces of prompts."""
    texts = [Sequence(str(row), [1] * 40) for row in range(4)]
    for row, text in enumerate(texts):
        text.blocks = [30 - row, 3 + row, 17] if row % 2 else [5 * row + n for n in (1, 2, 3, 4)]
    promised = Sequence("promised", [1] * 39, blocks=[20, 21, 22], promised=1)
    singles = [Chunk(texts[0], 39, 40, True), Chunk(promised, 39, 40, True)]
    drafted = Chunk(texts[1], 39, 41, True, (5,))
    pieces = [Chunk(texts[2], 16, 40, True), Chunk(texts[3], 0, 20, False)]
    carry = Carry(torch.empty(1, dtype=torch.long, device=META), {promised: 0})
    for decoder, shapes in decoders(config):
        for eight_bits in (False, True):
            cache = PagedCache(
                shapes, 40, BLOCK, dtype=torch.bfloat16, spare=True, eight_bits=eight_bits
            )
            windows = {shape.window for shape in shapes}
            builder = BatchBuilder(BLOCK, windows, dtype=torch.bfloat16, device=META)
            batch = builder.build(Plan([*singles, drafted], pieces, [], []), carry)
            assert decoder.forward(batch, cache).device == META
            graphs = DecodeGraphs(
                decoder.forward,
                cache,
                rows=4,
                context=128,
                device=META,
                capture=partial,
                in_place=False,
                are_near=lambda _graph, _step: True,  # it would read them back
            )
            found = graphs.run(Plan(singles, [], [], []), carry)
            assert found is not None, "the step was captured, not computed without a graph"
            assert found[1].shape == (2, VOCAB)


@torch.inference_mode()
def test_choice_of_tokens_is_queued_on_its_device() -> None:
    rows = [
        SamplingParams(
            Sampling(max_tokens=5, **settings), number, (1, 2), VOCAB, ends=frozenset({3})
        )
        for number, settings in enumerate(SETTINGS)
    ]
    void = torch.zeros(len(rows), dtype=torch.bool, device=META)
    for dtype in (torch.bfloat16, torch.float32):
        logits = torch.empty(len(rows), VOCAB, dtype=dtype, device=META)
        sample = Sampler().queue(logits, rows, [0] * len(rows), void)
        sample.count()
        assert sample.tokens.device == META
    words = [np.zeros(-(-VOCAB // 32), np.int32)] * 2
    assert masked(logits, [0, 2], words).device == META


def test_layers_of_few_bits_and_loras_compute_on_their_device() -> None:
    x = torch.empty(20, 64, dtype=torch.bfloat16, device=META)

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device=META)

    eight = EightBitLinear(empty(32, 64, dtype=torch.int8), empty(32, dtype=torch.float32), None)
    zero, scale = empty(2, 32, dtype=torch.uint8), empty(2, 32, dtype=torch.float16)
    four = FourBitLinear(empty(32, 32, dtype=torch.uint8), scale, zero, None)
    y = eight(x) + four(x)
    stack = LoraStack((64, 32), 9, 8, dtype=torch.bfloat16, device=META)
    stack.slots.update(range(9))
    for slots in ([0] * 20, [-1, 0, 1, 2] * 5, [0, 8] * 10):  # of one, side by side, far apart
        sent = upload(META, ints={"slots": slots})["slots"]
        stack.add(x, y, LoraRows.of(slots, sent))
    assert y.device == META
