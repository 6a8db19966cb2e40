"""The text engine on a CUDA device: the same answers as the library's generate() there."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny_models import FAMILIES, make_tiny_model
from workers.engines.text.engine import TextEngine
from workers.protocol import Cancelled, Done, Event, Load, Sampling, TextJob

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PROMPTS = ["one two three", "a longer prompt that takes several pieces to compute", "T"]


def load(path: Path, dtype: str) -> TextEngine:
    engine = TextEngine(step_tokens=11, block_size=8)
    spec = Load(
        model="tiny",
        engine="text",
        path=str(path),
        device="cuda",
        dtype=dtype,
        kv_cache_bytes=1 << 20,
    )
    ready = engine.load(spec, lambda _fraction: None)
    assert (ready.device, ready.dtype) == ("cuda", dtype)
    return engine


def finish(engine: TextEngine) -> list[Event]:
    events: list[Event] = []
    while engine.in_flight:
        events += engine.step()
    assert not any(engine.books().values())
    return events


def job(name: str, prompt: str, **sampling: object) -> TextJob:
    settings = Sampling(**{"max_tokens": 24, "ignore_eos": True, **sampling})  # type: ignore[arg-type]
    return TextJob(id=name, prompt=prompt, sampling=settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_output_is_that_of_generate(tmp_path: Path, family: str) -> None:
    path = make_tiny_model(family, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).to("cuda")
    model.generation_config.eos_token_id = None
    expected = {}
    engine = load(path, "float32")
    for number, prompt in enumerate(PROMPTS):
        inputs = tokenizer(prompt, return_tensors="pt").to("cuda")
        output = model.generate(**inputs, max_new_tokens=24, do_sample=False, pad_token_id=0)
        ids = output[0, inputs["input_ids"].shape[1] :].tolist()
        expected[str(number)] = tokenizer.decode(ids, skip_special_tokens=True)
        engine.submit(engine.prepare(job(str(number), prompt)))
    found = {event.id: event.text for event in finish(engine) if isinstance(event, Done)}
    engine.close()
    assert found == expected


def test_bfloat16_samples_repeat_with_their_seed_and_cancel_in_one_step(tmp_path: Path) -> None:
    engine = load(make_tiny_model("llama", tmp_path), "bfloat16")
    one = job("a", PROMPTS[1], temperature=0.9, top_k=40, top_p=0.95, seed=3, logprobs=2)
    texts = []
    for _ in range(2):
        engine.submit(engine.prepare(one))
        texts += [event.text for event in finish(engine) if isinstance(event, Done)]
    assert texts[0] == texts[1]
    engine.submit(engine.prepare(one))
    engine.step()
    engine.cancel("a")
    assert [type(event) for event in engine.step()] == [Cancelled]
    assert not any(engine.books().values())
    engine.close()
