"""Models that are split over two simulated cards compute what the library does on one device.

Their projections are joined on the way to each card, and what the layers read is copied from card
to card once a step.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import structs
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.support.models.adapters import make_text_lora
from tests.support.models.packed import make_packed
from tests.support.models.text import make_tiny_model
from tests.support.simulated_cards import Cards, simulated_cards
from tests.support.text_harness import farthest, job, run
from workers.engines import peer_copies
from workers.engines.base import Refused
from workers.engines.text.blocks import BlockAllocator
from workers.engines.text.cache_plan import cache_plan
from workers.engines.text.decoder import LibraryDecoder
from workers.engines.text.engine import TextEngine
from workers.engines.text.fused import FusedDecoder
from workers.engines.text.fused_layers import query_key_value
from workers.engines.text.loading import LoadedModel, load
from workers.engines.text.lora_slots import LoraBounds
from workers.engines.text.plan import Plan, Sequence, next_chunk
from workers.engines.text.runner import Runner
from workers.engines.text.runners import open_runner
from workers.engines.text.self_check import compute
from workers.protocol import Load, TextLora, TextOptions

BLOCK_SIZE = 4
LENGTHS = (5, 23, 38)  #: of prompts: more than a window, and rows of one step that differ
ROWS = [[(11 + 7 * place + 3 * n) % 300 for place in range(n)] for n in LENGTHS]
CPU = torch.device("cpu")
FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)
#: Bytes beside the weights that may lie on a card after a load: rotations, and scales of norms.
SMALL = 8192
JOINED = ("gemma2", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3")
TUNED = {  #: layers that LoRAs change
    "gpt2": ["c_attn"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "phi3": ["qkv_proj", "o_proj"],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: make_tiny_model(family, root / family) for family in (*JOINED, "gpt2")}


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cards]:
    monkeypatch.setattr(peer_copies, "_NUMBERS", 8)
    with simulated_cards(monkeypatch) as found, torch.inference_mode():
        yield found


def spec_of(path: Path, **settings: Any) -> Load:
    """Return a load over two cards, each with room for most of the model."""
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    return Load(
        model="tiny",
        engine="text",
        path=str(path),
        device="cuda",
        visible_devices="0,1",
        device_weights=(size * 9 // 10,) * 2,
        kv_cache_bytes=1 << 20,
        max_batch=4,
        **{"dtype": "float32", **settings},
    )


def runner_of(spec: Load, loaded: LoadedModel, **how: Any) -> Runner:
    return Runner(loaded, cache_plan(spec, loaded.max_positions, BLOCK_SIZE), **how)


def library_logits(model: Any) -> list[Tensor]:
    """Return what the library computes of the prompts, on the CPU."""
    return [model.eval()(input_ids=torch.tensor([ids]), use_cache=False).logits[0] for ids in ROWS]


def check(runner: Runner, expected: list[Tensor]) -> None:
    """Compute prompts in pieces and then token by token, together: their logits are expected."""
    allocator = BlockAllocator(runner.blocks, BLOCK_SIZE)
    found = compute(runner.run, ROWS, allocator)
    runner.scrub(found.blocks)
    assert farthest(found, expected) < 1e-5 * torch.cat(expected).std().item() + 1e-5


def placed(loaded: LoadedModel) -> dict[torch.device, int]:
    """Return the bytes of weights by device."""
    found: dict[torch.device, int] = {}
    for weight in loaded.model.parameters():
        found[weight.device] = found.get(weight.device, 0) + weight.nbytes
    return found


@pytest.mark.parametrize("family", JOINED)
def test_split_model_is_joined_and_computes_the_library_s_logits(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    path = models[family]
    expected = library_logits(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32))
    monkeypatch.setattr(peer_copies, "_NUMBERS", 8)
    with simulated_cards(monkeypatch) as cards, torch.inference_mode():
        spec = spec_of(path)
        loaded = load(spec)
        sizes = placed(loaded)
        assert set(sizes) == {FIRST, SECOND}
        for card, size in sizes.items():  # neither parts beside joined ones nor gaps
            assert size <= cards.peak[card.index] <= size + SMALL
        first_parts = [query_key_value(each.self_attn)[0] for each in loaded.model.model.layers]
        lie_at = [each.weight.data_ptr() for each in first_parts]
        runner = runner_of(spec, loaded)
        assert isinstance(runner._decoder, FusedDecoder)
        made: list[Any] = [layer.qkv for layer in runner._decoder._layers]
        joined = [each._weight.data_ptr() for each in made]
        assert joined == lie_at, "joined as they were loaded, and not again"
        layers = [layer.device for layer in runner._decoder._layers]
        assert layers == sorted(layers, key=str)
        assert set(layers) == {FIRST, SECOND}
        assert [page.device for page in runner.cache.pages] == layers
        check(runner, expected)
        runner.close()


def test_split_model_of_another_class_computes_the_library_s_logits(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its passes bring each tensor to the layer's card, and which logits are wanted to the head's:
    sent to the first card, as the library does, they would index nothing of the second."""
    path = models["gpt2"]
    expected = library_logits(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32))
    monkeypatch.setattr(peer_copies, "_NUMBERS", 8)
    with simulated_cards(monkeypatch), torch.inference_mode():
        spec = spec_of(path)
        loaded = load(spec)
        assert set(placed(loaded)) == {FIRST, SECOND}
        runner = runner_of(spec, loaded)
        assert isinstance(runner._decoder, LibraryDecoder)
        check(runner, expected)
        runner.close()


@pytest.mark.parametrize(("family", "first"), [("llama", 0.55), ("gemma2", 0.45)])
def test_split_step_copies_to_a_card_once_whatever_its_layers(
    models: dict[str, Path], cards: Cards, family: str, first: float
) -> None:
    spec = spec_of(models[family])
    total = max(spec.device_weights)
    spec = structs.replace(spec, device_weights=(int(first * total), total), even_split=False)
    runner = runner_of(spec, load(spec))
    assert isinstance(runner._decoder, FusedDecoder)
    assert [layer.device for layer in runner._decoder._layers].count(SECOND) == 2
    row = next_chunk(Sequence("", [5], blocks=[1]), 1)
    cards.copies.clear()
    runner.run(Plan([row], [], [], []))
    masks = {"llama": 1, "gemma2": 2}[family]  # one of each window
    # Hidden states, slots, block table, masks, cosine and sine.
    assert cards.copies[FIRST, SECOND] == 5 + masks
    # Hidden states to a head that shares the embedding's weight, or the logits.
    assert cards.copies[SECOND, FIRST] == 1
    runner.close()


def test_split_model_of_four_bits_is_joined_on_its_cards(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library puts its layers there, and each is joined where it lies."""
    path = tmp_path / "packed"
    meant = make_packed(models["qwen2"], path, "gptq")
    library = AutoModelForCausalLM.from_pretrained(models["qwen2"], dtype=torch.float32)
    library.load_state_dict(meant, strict=False)
    expected = library_logits(library)
    monkeypatch.setattr(peer_copies, "_NUMBERS", 8)
    with simulated_cards(monkeypatch), torch.inference_mode():
        spec = spec_of(path)
        runner = runner_of(spec, load(spec))
        assert isinstance(runner._decoder, FusedDecoder)
        assert {layer.device for layer in runner._decoder._layers} == {FIRST, SECOND}
        check(runner, expected)
        runner.close()


@pytest.mark.usefixtures("cards")
def test_split_model_of_eight_bits_is_refused_by_name(models: dict[str, Path]) -> None:
    with pytest.raises(Refused) as refused:
        load(spec_of(models["llama"], quantization="int8"))
    assert "over several devices is not quantised to it" in refused.value.message


@pytest.mark.usefixtures("cards")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_split_model_in_bfloat16_passes_the_check_at_load(
    models: dict[str, Path], family: str
) -> None:
    """Measure over both cards how far rounding sends its logits."""
    spec = spec_of(models[family], dtype="bfloat16")
    loaded = load(spec)
    assert len(placed(loaded)) == 2
    runner_of(spec, loaded).close()


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_split_model_adds_a_lora_on_the_card_of_each_layer(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    folder = make_text_lora(models[family], tmp_path / "lora", target_modules=TUNED[family])
    expected = lora_logits(models[family], folder)
    monkeypatch.setattr(peer_copies, "_NUMBERS", 8)
    with simulated_cards(monkeypatch), torch.inference_mode():
        spec = spec_of(models[family])
        runner = runner_of(spec, load(spec), loras=LoraBounds(2, 16))
        assert runner.loras is not None
        lora = TextLora(path=str(folder))
        slot = runner.loras.take(lora, runner.loras.read(lora))
        allocator = BlockAllocator(runner.blocks, BLOCK_SIZE)

        def with_lora(plan: Plan) -> Any:
            for chunk in (*plan.decodes, *plan.prefills):
                chunk.sequence.lora = slot
            return runner.run(plan)

        found = compute(with_lora, ROWS, allocator)
        assert farthest(found, expected) < 1e-4 * torch.cat(expected).std().item()
        runner.close()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_split_model_with_an_adapter_merged_computes_what_peft_does(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    folder = make_text_lora(models[family], tmp_path / "lora", target_modules=TUNED[family])
    expected = lora_logits(models[family], folder)
    monkeypatch.setattr(peer_copies, "_NUMBERS", 8)
    with simulated_cards(monkeypatch), torch.inference_mode():
        spec = spec_of(models[family], adapter=str(folder))
        runner = runner_of(spec, load(spec))
        assert isinstance(runner._decoder, FusedDecoder) is (family == "llama")
        check(runner, expected)
        runner.close()


def test_split_model_answers_as_the_same_on_one_device(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the engine: steps that overlap, prefixes that are shared, seeds."""
    jobs = [
        job("long", "one two " * 12, logprobs=2),
        job("drawn", "one two " * 12 + "three", seed=3, temperature=1.0),
        job("short", "x", max_tokens=30),
    ]

    def answers(spec: Load) -> dict[str, str]:
        engine = TextEngine(block_size=BLOCK_SIZE)
        engine.load(spec, lambda _fraction: None)
        ended = [run(engine, *jobs), run(engine, jobs[0])]
        engine.close()
        return {
            f"{name} {n}": end.choices[0].text
            for n, ends in enumerate(ended)
            for name, end in ends.items()
        }

    spec = spec_of(models["qwen2"], warmup=False, threads=1)
    on_one = structs.replace(spec, device="cpu", visible_devices="", device_weights=())
    expected = answers(on_one)
    monkeypatch.setattr(peer_copies, "_NUMBERS", 8)
    with simulated_cards(monkeypatch):
        assert answers(spec) == expected


def test_split_cache_is_read_written_and_scrubbed_on_each_layer_s_card(
    models: dict[str, Path], cards: Cards
) -> None:
    spec = spec_of(models["qwen2"])
    cache = runner_of(spec, load(spec)).cache
    assert {page.device for page in cache.pages} == {FIRST, SECOND}
    kept = torch.arange(2 * cache.block_bytes).remainder(64).to(torch.uint8).view(2, -1)
    cards.copies.clear()
    cache.copy_in([3, 5], kept)
    assert torch.equal(cache.copy_out([3, 5]), kept)
    assert cache.hold_numbers([3, 5])
    cache.pages[-1][3 * BLOCK_SIZE] = float("nan")
    assert not cache.hold_numbers([3])
    cache.scrub([3])
    assert not cache.copy_out([3]).any()
    assert torch.equal(cache.copy_out([5])[0], kept[1])
    assert not {pair for pair in cards.copies if CPU not in pair}


@pytest.mark.usefixtures("cards")
def test_split_model_is_given_no_graphs_and_says_so(models: dict[str, Path]) -> None:
    spec = spec_of(models["llama"], text=TextOptions(graphs="lazy"))
    loaded = load(spec)
    plan = cache_plan(spec, loaded.max_positions, BLOCK_SIZE)
    with pytest.raises(Refused) as refused:
        open_runner(loaded, plan, graphs="lazy")
    assert refused.value.message == (
        "text.graphs is lazy, but the model is split over several cards."
    )


def lora_logits(base: Path, folder: Path) -> list[Tensor]:
    """Return what the library that trains LoRAs computes with one of the prompts."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own, of versions to come
        wrapped = PeftModel.from_pretrained(model, str(folder))
    return library_logits(wrapped.merge_and_unload())
