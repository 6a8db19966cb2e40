"""Rows of several LoRAs and of their base in one batch are what peft computes of each alone."""

import copy
import shutil
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.support.engine_runs import finals, run_to_end, submit
from tests.support.models.adapters import make_text_lora
from tests.support.models.sequential_text import make_sequential_model
from tests.support.models.text import make_tiny_model
from tests.support.text_harness import done, job, load
from workers.engines.base import Refused
from workers.engines.eight_bit_linear import EightBitLinear
from workers.engines.text import runners
from workers.engines.text.engine import TextEngine
from workers.engines.text.runner import Runner
from workers.protocol import (
    Cancelled,
    Final,
    TextDone,
    TextJob,
    TextLora,
    TextOptions,
)

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
#: Two LoRAs of other layers and ranks each, for every family.
LORAS: dict[str, list[dict[str, Any]]] = {
    "llama": [
        {"target_modules": ALL, "rank_pattern": {"up_proj": 2}, "alpha_pattern": {"q_proj": 3}},
        {"target_modules": ["v_proj", "gate_proj"], "r": 12, "use_rslora": True},
    ],
    "qwen2": [{"target_modules": ["k_proj", "down_proj"]}, {"target_modules": ALL, "r": 9}],
    "gemma2": [{"target_modules": ALL}, {"target_modules": ["q_proj"], "r": 3}],
    "gpt2": [
        {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True},
        {"target_modules": ["c_proj"], "fan_in_fan_out": True, "r": 11},
    ],
}
PROMPTS = ["one two", "three four five six seven eight nine ten", "eleven"]


class Family:
    """Holds a base, two LoRAs of it, and what peft makes of them."""

    def __init__(self, base: Path, root: Path, configs: list[dict[str, Any]]) -> None:
        self.base = base
        self.loras = [
            make_text_lora(base, root / f"lora{number}", seed=number + 7, **config)
            for number, config in enumerate(configs)
        ]
        self.prepare: Callable[[Any], None] = lambda _model: None  #: before peft has the base
        self._models: dict[int | None, Any] = {}

    @torch.inference_mode()
    def logs(self, lora: int | None, tokens: list[int]) -> Tensor:
        """Return the log-probabilities of all tokens after each."""
        if lora not in self._models:
            model: Any = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
            self.prepare(model)
            if lora is not None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    model = PeftModel.from_pretrained(model, self.loras[lora])
            self._models[lora] = model.eval()
        found = self._models[lora](input_ids=torch.tensor([tokens]))
        logs: Tensor = found.logits[0].log_softmax(-1)
        return logs


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    def make(name: str) -> Family:
        root = tmp_path_factory.mktemp(name)
        return Family(make_tiny_model(name, root / "base"), root, LORAS[name])

    return cache(make)


@pytest.fixture(params=list(LORAS))
def family(request: pytest.FixtureRequest, families: Callable[[str], Family]) -> Family:
    return families(request.param)


def open_engine(base: Path, *, most: int = 2, rank: int = 16, **spec: Any) -> TextEngine:
    text = TextOptions(max_loras=most, max_lora_rank=rank, **spec.pop("text", {}))
    return load(base, text=text, **spec)[0]


def asked(name: str, lora: Path | None, prompt: str = "one two", **sampling: Any) -> TextJob:
    plain = job(name, prompt, **{"temperature": 0.0, "logprobs": 0, **sampling})
    if lora is None:
        return plain
    return TextJob(id=name, prompt=prompt, sampling=plain.sampling, lora=TextLora(path=str(lora)))


def check(family: Family, engine: TextEngine, lora: int | None, prompt: str, end: TextDone) -> None:
    """Check that each token is peft's own choice, with its probability."""
    tokens: list[int] = engine._loaded.tokenizer(prompt)["input_ids"]
    said = [one.id for one in end.choices[0].logprobs]
    logs = family.logs(lora, tokens + said)[len(tokens) - 1 : -1]
    assert said == logs.argmax(-1).tolist()
    told = torch.tensor([one.logprob for one in end.choices[0].logprobs])
    assert (told - logs.amax(-1)).abs().max() < 1e-4


def test_loras_alone_and_in_one_batch_with_their_base_are_as_their_library_computes_them(
    family: Family,
) -> None:
    engine = open_engine(family.base, step_tokens=9)  # so that prompts are read in pieces
    try:
        alone = done(run_to_end(engine, asked("0", family.loras[0])))
        check(family, engine, 0, "one two", alone["0"])
        cases = [(lora, prompt) for prompt in PROMPTS for lora in (None, 0, 1)]
        jobs = [
            asked(f"{lora} {prompt}", None if lora is None else family.loras[lora], prompt)
            for lora, prompt in cases
        ]
        ends = done(run_to_end(engine, *jobs))
        for lora, prompt in cases:
            check(family, engine, lora, prompt, ends[f"{lora} {prompt}"])
        texts = {ends[f"{lora} one two"].choices[0].text for lora in (None, 0, 1)}
        assert len(texts) == 3
    finally:
        engine.close()


@pytest.fixture(scope="module")
def llama(families: Callable[[str], Family]) -> Family:
    return families("llama")


@pytest.fixture(scope="module")
def three(llama: Family, tmp_path_factory: pytest.TempPathFactory) -> list[Path | None]:
    """Provide the base, as None, and three LoRAs of it."""
    third = make_text_lora(llama.base, tmp_path_factory.mktemp("third"), seed=3)
    return [None, *llama.loras, third]


LONG = "one two three four five six seven eight one two three four five six"


def test_lora_that_waits_for_a_slot_is_not_overtaken_for_ever(
    llama: Family, three: list[Path | None]
) -> None:
    engine = open_engine(llama.base, most=1)
    first, second = three[1:3]
    submit(engine, asked("long", first, max_tokens=30))
    engine.step()
    submit(engine, asked("other", second), asked("base", None), asked("late", first))
    engine.step()
    assert len(engine._loras) == 2
    ended = [each.id for each in run_to_end(engine) if isinstance(each, Final)]
    assert ended == ["base", "long", "other", "late"]  # the base's needs no slot
    engine.close()


def test_lora_that_waits_is_cancelled(llama: Family, three: list[Path | None]) -> None:
    engine = open_engine(llama.base, most=1)
    submit(engine, asked("long", three[1], max_tokens=30))
    engine.step()
    submit(engine, asked("other", three[2]))
    engine.step()
    engine.cancel("other")
    ends = finals(run_to_end(engine))
    assert (type(ends["long"]), type(ends["other"])) == (TextDone, Cancelled)
    engine.close()


def test_lora_shares_no_prefix_with_its_base_or_another(
    llama: Family, three: list[Path | None]
) -> None:
    engine = open_engine(llama.base, most=3)
    try:
        for lora in three:
            one = msgspec.structs.replace(asked("x", lora, LONG), prefix_scope="key")
            first, again = (done(run_to_end(engine, one))["x"] for _ in range(2))
            assert first.cached_tokens == 0
            assert again.cached_tokens > 8
            assert again.choices[0].text == first.choices[0].text
    finally:
        engine.close()


def test_lora_of_a_base_of_eight_bits_is_added_in_full_precision(llama: Family) -> None:
    engine = open_engine(llama.base, quantization="int8")
    rounded = copy.copy(llama)
    rounded._models = {}

    def take_over(model: Any) -> None:
        for path, layer in engine._loaded.model.named_modules():
            if isinstance(layer, EightBitLinear):
                model.get_submodule(path).weight.data = layer.weight

    rounded.prepare = take_over
    try:
        jobs = [asked("None", None), *(asked(str(n), each) for n, each in enumerate(llama.loras))]
        ends = done(run_to_end(engine, *jobs))
        for lora in (None, 0, 1):
            check(rounded, engine, lora, "one two", ends[str(lora)])
    finally:
        engine.close()


def test_lora_of_a_model_that_is_computed_one_by_one_is_as_its_library_computes_it(
    tmp_path: Path,
) -> None:
    base = make_sequential_model("lfm2", tmp_path / "lfm2")
    family = Family(base, tmp_path, [{"target_modules": ["q_proj", "in_proj", "w1"]}])
    engine = open_engine(base)
    lora = family.loras[0]
    try:
        jobs = [asked("a", lora), asked("b", None), asked("c", lora, PROMPTS[1])]
        ends = done(run_to_end(engine, *jobs))
        check(family, engine, 0, "one two", ends["a"])
        check(family, engine, None, "one two", ends["b"])
        check(family, engine, 0, PROMPTS[1], ends["c"])
    finally:
        engine.close()


def test_lora_is_computed_beside_graphs_of_steps_without_one(
    llama: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captures that compute again stand in for a card's; a step with a LoRA is none of theirs."""
    monkeypatch.setattr(runners, "_capture", lambda _loaded, _graphs: lambda step: step)
    engine = open_engine(llama.base, text={"graphs": "lazy"})
    try:
        jobs = [asked("0", llama.loras[0], max_tokens=4), asked("None", None, max_tokens=12)]
        ends = done(run_to_end(engine, *jobs))
        for lora in (0, None):
            check(llama, engine, lora, "one two", ends[str(lora)])
        assert isinstance(engine._runner, Runner)
        assert engine._runner.graphs
    finally:
        engine.close()


def refusal(engine: TextEngine, lora: Path) -> str:
    with pytest.raises(Refused) as caught:
        engine.prepare(asked("x", lora))
    assert caught.value.code == "MODEL_LOAD_FAILED"
    return caught.value.message


def test_lora_that_does_not_fit_is_refused_and_the_others_go_on(
    llama: Family, three: list[Path | None], tmp_path: Path
) -> None:
    engine = open_engine(llama.base, rank=8)
    try:
        submit(engine, asked("a", three[3]))
        gpt2 = make_tiny_model("gpt2", tmp_path / "gpt2")
        other = make_text_lora(gpt2, tmp_path / "other", target_modules=["c_attn"])
        assert "another model than its base" in refusal(engine, other)
        assert "rank is 12" in refusal(engine, llama.loras[1])
        dora = make_text_lora(llama.base, tmp_path / "dora", use_dora=True)
        assert "no part of a pair" in refusal(engine, dora)
        broken = shutil.copytree(llama.loras[0], tmp_path / "broken")
        (broken / "adapter_model.safetensors").write_bytes(b"\xff" * 40)
        assert "does not load" in refusal(engine, broken)
        assert "does not load" in refusal(engine, tmp_path / "nowhere")
        assert finals(run_to_end(engine)).keys() == {"a"}
    finally:
        engine.close()


def test_lora_with_a_weight_that_is_no_number_is_refused(llama: Family, tmp_path: Path) -> None:
    broken = shutil.copytree(llama.loras[0], tmp_path / "broken")
    tensors = load_file(broken / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("inf")
    save_file(tensors, broken / "adapter_model.safetensors")
    engine = open_engine(llama.base)
    assert "not finite" in refusal(engine, broken)
    engine.close()


def test_lora_whose_files_have_changed_is_refused(llama: Family) -> None:
    engine = open_engine(llama.base)
    one = asked("x", llama.loras[0])
    assert one.lora is not None
    found = (llama.loras[0] / "adapter_model.safetensors").stat()
    for seconds, refused in ((0, False), (1, True)):
        stamp = (found.st_size, found.st_mtime_ns + seconds)
        lora = msgspec.structs.replace(one.lora, stamps={"adapter_model.safetensors": stamp})
        changed = msgspec.structs.replace(one, lora=lora)
        with pytest.raises(Refused, match="has changed") if refused else nullcontext():
            engine.prepare(changed)
    engine.close()


def test_loras_that_wait_for_slots_are_read_once_and_few_at_a_time(
    llama: Family, tmp_path: Path
) -> None:
    engine = open_engine(llama.base, most=1)
    copies = [shutil.copytree(llama.loras[0], tmp_path / str(number)) for number in range(6)]
    prepared = [engine.prepare(asked(f"{n}", each)) for n, each in enumerate(copies)]
    assert [each.lora is None for each in prepared] == [False] * 4 + [True] * 2
    again = engine.prepare(asked("again", copies[0]))
    assert again.lora is prepared[0].lora
    for each in prepared:
        engine.submit(each)
    texts = {end.choices[0].text for end in done(run_to_end(engine)).values()}
    assert len(texts) == 1
    engine.close()


def test_lora_is_refused_where_there_is_no_room_for_any(llama: Family) -> None:
    engine, _ = load(llama.base)
    assert "without room for LoRAs" in refusal(engine, llama.loras[0])
    engine.close()
