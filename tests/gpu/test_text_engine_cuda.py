"""The text engine on a CUDA device: the same answers as the library's generate() there."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from tests.support.engine_runs import run_to_end
from tests.support.models.adapters import make_text_lora
from tests.support.models.text import FAMILIES, VOCAB, make_tiny_model, train_tokenizer
from tests.support.text_harness import distance_from_library
from workers.engines.text.engine import TextEngine
from workers.engines.text.runner import Runner
from workers.engines.text.sampler import Sampler
from workers.engines.text.sampling_params import SamplingParams
from workers.protocol import (
    Attention,
    Cancelled,
    Grammar,
    Load,
    Sampling,
    TextDone,
    TextJob,
    TextLora,
    TextOptions,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

MIB = 1024 * 1024
PROMPTS = ["one two three", "a longer prompt that takes several pieces to compute", "T"]


#: each way to compute a step: on a card they overlap by default
WAYS = [
    TextOptions(),
    TextOptions(overlap="off"),
    TextOptions(graphs="lazy"),
    TextOptions(graphs="warmup", overlap="off"),
    TextOptions(attention="triton"),
    TextOptions(attention="triton", graphs="lazy"),
]
#: Their experts may be computed by a loop that asks the card how many tokens each has: in float32
#: torch has no product of groups there. Then steps are computed without graphs, which is no fault.
WITHOUT_GRAPHS = ("gpt_oss",)


def load(path: Path, dtype: str, options: TextOptions | None = None) -> TextEngine:
    engine = TextEngine(step_tokens=11, block_size=8)
    spec = Load(
        model="tiny",
        engine="text",
        path=str(path),
        device="cuda",
        dtype=dtype,
        kv_cache_bytes=1 << 20,
        text=options,
    )
    ready = engine.load(spec, lambda _fraction: None)
    assert (ready.device, ready.dtype) == ("cuda", dtype)
    return engine


def job(name: str, prompt: str, **sampling: object) -> TextJob:
    settings = Sampling(**{"max_tokens": 24, "ignore_eos": True, **sampling})  # type: ignore[arg-type]
    return TextJob(id=name, prompt=prompt, sampling=settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_output_is_that_of_generate_in_each_way(tmp_path: Path, family: str) -> None:
    path = make_tiny_model(family, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).to("cuda")
    model.generation_config.eos_token_id = None
    expected = {}
    for number, prompt in enumerate(PROMPTS):
        inputs = tokenizer(prompt, return_tensors="pt").to("cuda")
        output = model.generate(**inputs, max_new_tokens=24, do_sample=False, pad_token_id=0)
        ids = output[0, inputs["input_ids"].shape[1] :].tolist()
        expected[str(number)] = tokenizer.decode(ids, skip_special_tokens=True)
    for options in WAYS:
        engine = load(path, "float32", options)
        jobs = [job(name, prompt) for name, prompt in zip(expected, PROMPTS, strict=True)]
        ends = [event for event in run_to_end(engine, *jobs) if isinstance(event, TextDone)]
        captured = engine._runner.graphs if isinstance(engine._runner, Runner) else 0
        engine.close()
        assert {end.id: end.text for end in ends} == expected, options
        if family not in WITHOUT_GRAPHS:
            assert bool(captured) == (options.graphs != "off"), options


def test_loras_change_no_text_as_graphs(tmp_path: Path) -> None:
    """Rows of two LoRAs and of their base, for long enough that steps with LoRAs are captured."""
    path = make_tiny_model("llama", tmp_path / "base")
    ranks = (4, 16)
    loras = [
        TextLora(path=str(make_text_lora(path, tmp_path / f"{rank}", seed=rank, r=rank)))
        for rank in ranks
    ]
    texts: list[dict[str, str]] = []
    captured: list[bool] = []
    for options in (TextOptions(), TextOptions(graphs="lazy")):
        engine = load(path, "float32", msgspec.structs.replace(options, max_loras=2))
        jobs = [
            msgspec.structs.replace(job(str(number), PROMPTS[0], max_tokens=100), lora=lora)
            for number, lora in enumerate([*loras, None])
        ]
        ends = [event for event in run_to_end(engine, *jobs) if isinstance(event, TextDone)]
        texts.append({end.id: end.text for end in ends})
        assert isinstance(engine._runner, Runner)
        graphs = engine._runner._graphs
        captured.append(graphs is not None and any(size[2] for size in graphs._captured))
        engine.close()
    assert texts[0] == texts[1]
    assert len(set(texts[0].values())) == 3
    assert captured == [False, True]


def test_prefixes_from_ram_and_drafts_change_no_text(tmp_path: Path) -> None:
    """Blocks leave a small cache for the host and come back; words that repeat are drafted."""
    path = make_tiny_model("llama", tmp_path)
    prompts = [f"{number}. {'some words again and ' * 6}" for number in range(4)]
    ends: list[dict[str, TextDone]] = []
    for options in (TextOptions(), TextOptions(speculation="lookup", prefix_ram_bytes=1 << 20)):
        engine = TextEngine(step_tokens=16, block_size=8)
        spec = Load(
            model="tiny",
            engine="text",
            path=str(path),
            device="cuda",
            dtype="float32",
            kv_cache_bytes=1 << 18,
            text=options,
        )
        engine.load(spec, lambda _fraction: None)
        found: dict[str, TextDone] = {}
        for number in range(12):
            one = job(str(number), prompts[number % 4], logit_bias={270: 100.0})
            engine.submit(engine.prepare(msgspec.structs.replace(one, prefix_scope="a")))
            found |= {each.id: each for each in run_to_end(engine) if isinstance(each, TextDone)}
        ends.append(found)
        engine.close()
    plain, other = ends
    assert {name: end.text for name, end in other.items()} == {
        name: end.text for name, end in plain.items()
    }
    assert all(other[str(number)].cached_tokens > 0 for number in range(4, 12))
    assert sum(end.accepted_tokens for end in other.values()) > 0


def test_seed_in_bfloat16_repeats_its_samples_and_cancel_takes_one_step(tmp_path: Path) -> None:
    engine = load(make_tiny_model("llama", tmp_path), "bfloat16")
    one = job("a", PROMPTS[1], temperature=0.9, top_k=40, top_p=0.95, seed=3, logprobs=2)
    texts = []
    for _ in range(2):
        engine.submit(engine.prepare(one))
        texts += [event.text for event in run_to_end(engine) if isinstance(event, TextDone)]
    assert texts[0] == texts[1]
    engine.submit(engine.prepare(one))
    engine.step()
    engine.cancel("a")
    assert [type(event) for event in engine.step()][-1] is Cancelled
    assert not any(engine.books().values())
    engine.close()


@pytest.mark.parametrize(
    ("dtype", "tolerance", "attention"),
    [("float32", 1e-3, "sdpa"), ("bfloat16", 0.3, "sdpa"), ("bfloat16", 0.3, "triton")],
)
def test_greedy_tokens_and_logprobs_of_several_rows_are_the_library_s(
    tmp_path: Path, dtype: str, tolerance: float, attention: Attention
) -> None:
    """Check half precision with the kernel: prompts are computed by torch's ragged attention."""
    path = make_tiny_model("qwen3", tmp_path)
    engine = load(path, dtype, TextOptions(attention=attention))
    jobs = [job(str(number), prompt, logprobs=3) for number, prompt in enumerate(PROMPTS)]
    prompts = {}
    for one in jobs:
        prepared = engine.prepare(one)
        prompts[one.id] = prepared.prompts[0].ids
        engine.submit(prepared)
    ends = [event for event in run_to_end(engine) if isinstance(event, TextDone)]
    engine.close()
    assert len(ends) == len(jobs)
    for end in ends:
        likelier, off = distance_from_library(
            path, getattr(torch, dtype), "cuda", prompts[end.id], end
        )
        assert max(likelier, off) <= tolerance


def test_load_reserves_no_more_than_it_holds(tmp_path: Path) -> None:
    """Parts that are joined on the card would leave gaps of half the model's size."""
    tokenizer = train_tokenizer()
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    engine = load(tmp_path, "bfloat16")
    after = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    told = engine.device_bytes()
    engine.close()
    assert after - before <= 48 * MIB
    assert told is not None
    assert told <= torch.cuda.memory_reserved() + 500 * MIB


MIXED: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_p": 0.95},
    {"temperature": 1.2, "top_k": 40, "min_p": 0.01},
    {"temperature": 1.0, "top_k": 700, "top_p": 0.9, "repetition_penalty": 1.2},
    {"presence_penalty": 0.5, "frequency_penalty": 0.2, "logit_bias": {7: 2.0}},
    {"temperature": 0.9, "top_p": 0.9, "logprobs": 4},
    {"logprobs": 0},
]


def test_sampling_waits_for_the_device_only_to_take_the_tokens() -> None:
    vocab = 5000
    rows = [
        SamplingParams(Sampling(max_tokens=1, **settings), number, (1, 2), vocab)
        for number, settings in enumerate(MIXED * 8)
    ]
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(len(rows), vocab, generator=generator) * 5 for _ in range(3)]
    there, here = Sampler(), Sampler()
    differ = 0
    for position, values in enumerate(logits):
        on_card = values.to("cuda")
        positions = [position] * len(rows)
        if position:  # the first call loads kernels, and notes the prompts
            torch.cuda.set_sync_debug_mode("error")
        try:
            sample = there.queue(on_card, rows, positions)
            sample.count()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found, _ = sample.collect()
        expected = here.sample(values, rows, positions)
        pairs = list(zip(found, expected, strict=True))
        differ += sum(one.token != other.token for one, other in pairs)
        for one, other in pairs:
            assert (one.logprobs is None) == (other.logprobs is None)
    # The card's logarithms round otherwise, so a draw between two that are very close may differ.
    assert differ <= 3


def test_grammar_holds_its_own_text_and_no_other(tmp_path: Path) -> None:
    engine = load(make_tiny_model("llama", tmp_path), "float32")
    plain = job("plain", PROMPTS[0])
    alone = {end.id: end for end in run_to_end(engine, plain) if isinstance(end, TextDone)}
    held = TextJob(
        id="held",
        prompt=PROMPTS[1],
        n=3,
        sampling=Sampling(max_tokens=24, temperature=1.2, seed=1, presence_penalty=0.5),
        grammar=Grammar(kind="choice", source='["yes", "no", "żółć"]'),
    )
    ends = {end.id: end for end in run_to_end(engine, plain, held) if isinstance(end, TextDone)}
    engine.close()
    assert ends["plain"].text == alone["plain"].text
    assert {choice.text for choice in ends["held"].choices} <= {"yes", "no", "żółć"}
