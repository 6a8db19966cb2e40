"""The text engine's memory: weights lie on a device once, and running out of it is survived."""

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from tests.support.cuda_errors import OUT_OF_MEMORY_ERRORS, TWO_OUT_OF_MEMORY_ERRORS
from tests.support.engine_runs import run_to_end
from tests.support.models.text import make_tiny_model
from tests.support.text_harness import done, job, load, run
from workers.engines.base import Refused
from workers.engines.text import loading
from workers.engines.text.batch import BatchBuilder, Carry
from workers.engines.text.blocks import BlockAllocator
from workers.engines.text.cache import LayerShape, PagedCache
from workers.engines.text.engine import TextEngine
from workers.engines.text.fused import FusedDecoder, move
from workers.engines.text.loading import LoadedModel
from workers.engines.text.plan import Plan, Sequence
from workers.engines.text.scheduler import Scheduler
from workers.protocol import Failed, Load

PROMPTS = ["one two three", "T", "żółć 漢字 🦊 in several pieces", " ".join(["again"] * 25)]
CPU = torch.device("cpu")
FUSED = ("llama", "qwen2", "qwen3", "mistral")
#: oneDNN packs no float64, so the weights are joined as they are on a card.
JOINED = torch.float64

shapes = pytest.mark.parametrize(
    "error", TWO_OUT_OF_MEMORY_ERRORS.values(), ids=list(TWO_OUT_OF_MEMORY_ERRORS)
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: make_tiny_model(family, root / family) for family in FUSED}


@pytest.fixture(autouse=True)
def _cudnn_attention() -> Iterator[None]:
    """Restore cuDNN's attention, which a load switches off for the whole process."""
    enabled = torch.backends.cuda.cudnn_sdp_enabled()
    yield
    torch.backends.cuda.enable_cudnn_sdp(enabled)


# ---- weights ---------------------------------------------------------------------------------


def library_model(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=JOINED).eval().requires_grad_(False)


def spec_of(path: Path, dtype: str | None = None) -> Load:
    return Load(model="m", engine="text", path=str(path), device="cuda", dtype=dtype)


def loaded_model(path: Path) -> Any:
    return loading._model(path, loading._config(path), JOINED, CPU, spec_of(path), spread=False)


def groups(layer: Any) -> list[list[nn.Linear]]:
    attention, mlp = layer.self_attn, layer.mlp
    return [[attention.q_proj, attention.k_proj, attention.v_proj], [mlp.gate_proj, mlp.up_proj]]


def storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Return the bytes of storages by address."""
    found = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


@pytest.mark.parametrize("family", FUSED)
def test_projections_are_joined_without_a_second_copy(models: dict[str, Path], family: str) -> None:
    model = loaded_model(models[family])
    decoder: Any = FusedDecoder(model)
    for layer, fused in zip(model.model.layers, decoder._layers, strict=True):
        for parts, joined in zip(groups(layer), (fused.qkv, fused.gate_up), strict=True):
            weights = [part.weight for part in parts]
            assert storages(weights) == storages([joined._weight])
            assert storages(weights).popitem()[1] == sum(weight.nbytes for weight in weights)
            assert weights[0].data_ptr() == joined._weight.data_ptr()
            biases = [part.bias for part in parts if part.bias is not None]
            if biases:
                assert joined._bias is not None
                assert storages(biases) == storages([joined._bias])
    alone = [fused.output._weight for fused in decoder._layers]
    alone += [fused.down._weight for fused in decoder._layers]
    alone += [decoder._head._weight, decoder._embedding]
    assert storages(alone).keys() <= storages(list(model.parameters())).keys()


@pytest.mark.parametrize("family", FUSED)
def test_joined_projections_leave_no_bytes_beside_the_parameters(
    models: dict[str, Path], family: str
) -> None:
    model = library_model(models[family])
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # out of the file's mapping, as a card's are
    total = sum(parameter.nbytes for parameter in model.parameters())
    move(model, {"": CPU}, JOINED)
    assert sum(storages(list(model.parameters())).values()) == total
    if family == "llama":
        assert model.lm_head.weight is model.model.embed_tokens.weight


def test_move_copies_nothing_that_is_there_already(models: dict[str, Path]) -> None:
    """Move to another name of the same device: the library puts weights on "cuda:0" for "cuda"."""
    model = library_model(models["llama"])
    move(model, {"": CPU}, JOINED)
    before = [parameter.data_ptr() for parameter in model.parameters()]
    copied: list[int] = []
    move(model, {"": torch.device("cpu", 0)}, JOINED, copied.append)
    assert [parameter.data_ptr() for parameter in model.parameters()] == before
    assert not copied


@pytest.mark.parametrize("family", FUSED)
@torch.inference_mode()
def test_joined_projections_compute_the_library_s_logits_bit_for_bit(
    models: dict[str, Path], family: str
) -> None:
    ids = torch.tensor([[5, 9, 200, 31, 7, 8, 8, 120, 3, 44, 17]])
    expected = library_model(models[family])(input_ids=ids).logits
    model = loaded_model(models[family])
    for layer in model.model.layers:
        assert [len(storages([each.weight for each in part])) for part in groups(layer)] == [1, 1]
    assert torch.equal(model(input_ids=ids).logits, expected)
    decoder = FusedDecoder(model)
    assert torch.equal(model(input_ids=ids).logits, expected), "the model still has its weights"
    fused = fused_logits(decoder, model, ids[0].tolist())
    # The library's norms and rotations are in float32 whatever the model is in.
    assert torch.allclose(fused, expected[0, -1:], atol=1e-4)


def fused_logits(decoder: FusedDecoder, model: Any, ids: list[int]) -> torch.Tensor:
    """Return the logits of the last of some tokens, which are computed in two pieces."""
    config = model.config
    window = getattr(config, "sliding_window", None)
    shape = LayerShape(config.num_key_value_heads, 16, 16, window, CPU)
    cache = PagedCache([shape] * config.num_hidden_layers, 8, 4, dtype=JOINED)
    builder = BatchBuilder(4, {window}, dtype=JOINED, device=CPU)
    scheduler = Scheduler(BlockAllocator(8, 4), max_rows=1, step_tokens=6)
    sequence = Sequence("one", ids)
    scheduler.add(sequence)
    while sequence.pending:
        plan = scheduler.schedule()
        logits = decoder.forward(builder.build(plan), cache)
        scheduler.commit(plan)
    return logits


@pytest.mark.parametrize("family", FUSED)
def test_packed_weights_on_a_cpu_let_go_of_the_file(models: dict[str, Path], family: str) -> None:
    path = models[family]
    engine, _ = load(path)
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert engine._loaded.model.model.layers[0].self_attn.q_proj.weight.numel() == 0
    assert run(engine, job("a"))["a"].completion_tokens == 12
    engine.close()


# ---- out of memory ---------------------------------------------------------------------------


def refusal(path: Path, **spec: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        load(path, **spec)
    return caught.value


@shapes
@pytest.mark.parametrize(
    ("owner", "method"), [(AutoModelForCausalLM, "from_pretrained"), (PagedCache, "__init__")]
)
def test_out_of_memory_at_load_is_not_a_fault_of_the_files(
    models: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    method: str,
    error: Exception,
) -> None:
    """Run out of memory while weights are read (onto several cards, too) and for the cache."""

    def fail(*_args: Any, **_settings: Any) -> Any:
        raise error

    monkeypatch.setattr(owner, method, fail)
    with pytest.raises(Refused) as caught:
        load(models["llama"])
    assert caught.value.code == "OUT_OF_MEMORY"


def out_of_memory_when(
    engine: TextEngine,
    monkeypatch: pytest.MonkeyPatch,
    too_much: Callable[[Plan], bool],
    error: Exception = OUT_OF_MEMORY_ERRORS["allocator"],
) -> None:
    """Let the device be too small for some plans: it fails as torch does, and computes the rest."""
    whole = engine._runner.launch

    def launch_or_fail(plan: Plan, carry: Carry | None) -> Any:
        if too_much(plan):
            raise error
        return whole(plan, carry)

    monkeypatch.setattr(engine._runner, "launch", launch_or_fail)


@shapes
@pytest.mark.parametrize("most_tokens", [1, 5])
def test_out_of_memory_halves_a_step_until_it_fits(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, most_tokens: int, error: Exception
) -> None:
    engine, _ = load(models["llama"])
    jobs = [job(str(number), prompt) for number, prompt in enumerate(PROMPTS)]
    alone = {one.id: run(engine, one)[one.id].text for one in jobs}
    out_of_memory_when(engine, monkeypatch, lambda plan: plan.tokens > most_tokens, error)
    for one in jobs:
        engine.submit(engine.prepare(one))
    events = run_to_end(engine)
    assert not [event for event in events if isinstance(event, Failed)]
    assert {name: end.text for name, end in done(events).items()} == alone
    engine.close()


def test_out_of_memory_fails_only_a_request_that_does_not_fit_by_itself(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = load(models["llama"])
    alone = run(engine, job("small"))["small"].text
    out_of_memory_when(
        engine, monkeypatch, lambda plan: "large" in {c.sequence.id for c in plan.chunks}
    )
    engine.submit(engine.prepare(job("small")))
    engine.step()
    engine.submit(engine.prepare(job("large", PROMPTS[3])))
    events = run_to_end(engine)
    failures = [event for event in events if isinstance(event, Failed)]
    assert [(event.id, event.code) for event in failures] == [("large", "OUT_OF_MEMORY")]
    assert done(events)["small"].text == alone
    engine.close()


def test_out_of_memory_while_sampling_counts_no_token_twice(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Penalties would be too strong for what was computed again."""
    engine, _ = load(models["llama"])
    wanted: dict[str, Any] = {"repetition_penalty": 1.4, "frequency_penalty": 0.9, "logprobs": 2}
    jobs = [
        job(str(number), "one two", temperature=1.0, seed=number, **wanted) for number in (1, 2)
    ]
    alone = {one.id: run(engine, one)[one.id].text for one in jobs}
    whole = torch.Tensor.log_softmax
    calls = 0

    def fail_with_two_rows(tensor: torch.Tensor, dim: int) -> torch.Tensor:
        nonlocal calls
        if len(tensor) > 1:  # of the logprobs, the last that is computed for a step
            calls += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(tensor, dim=dim)

    monkeypatch.setattr(torch.Tensor, "log_softmax", fail_with_two_rows)
    together = run(engine, *jobs)
    assert calls
    assert {name: end.text for name, end in together.items()} == alone
    engine.close()


@pytest.mark.parametrize("family", FUSED)
@torch.inference_mode()
def test_move_converts_as_the_library_does(models: dict[str, Path], family: str) -> None:
    """Read in the files' format and converted one by one, the weights are those that the library
    would have gathered in RAM."""
    ids = torch.tensor([[5, 9, 200, 31, 7]])
    expected = AutoModelForCausalLM.from_pretrained(models[family], dtype=torch.bfloat16).eval()
    model = library_model(models[family])
    move(model, {"": CPU}, torch.bfloat16)
    for mine, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    for own, other in zip(model.buffers(), expected.buffers(), strict=True):
        assert own.dtype is other.dtype
    assert torch.equal(model(input_ids=ids).logits, expected(input_ids=ids).logits)


# ---- the device ------------------------------------------------------------------------------


def test_load_takes_cudnn_out_of_attention(models: dict[str, Path]) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    load(models["llama"])[0].close()
    assert not torch.backends.cuda.cudnn_sdp_enabled()


class Garbage:
    """Is an object that only the collector of reference cycles can free."""

    def __init__(self) -> None:
        self.cycle = self


def test_load_frees_what_it_needed_for_a_moment(models: dict[str, Path]) -> None:
    left: list[weakref.ref[Garbage]] = []

    def make(spec: Load, _placed: object) -> LoadedModel:
        loaded = loading.load(spec)
        left.append(weakref.ref(Garbage()))
        return loaded

    engine = TextEngine(load_model=make, block_size=4)
    spec = Load(model="m", engine="text", path=str(models["llama"]), kv_cache_bytes=1 << 20)
    gc.disable()
    try:
        ready = engine.load(spec, lambda _fraction: None)
    finally:
        gc.enable()
    assert left[0]() is None
    assert ready.step_timeout == 0.0
    assert engine.device_bytes() is None
    engine.close()


@pytest.mark.parametrize(
    ("stored", "capability", "computed"),
    [
        ("float32", (9, 0), "bfloat16"),
        ("float32", (7, 5), "float16"),
        ("bfloat16", (8, 0), "bfloat16"),
        ("bfloat16", (7, 5), "float16"),
        ("float16", (9, 0), "float16"),
        ("float16", (7, 5), "float16"),
    ],
)
def test_dtype_on_a_card_is_one_that_it_computes_fast(
    monkeypatch: pytest.MonkeyPatch, stored: str, capability: tuple[int, int], computed: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "a card")

    class Config:
        dtype = getattr(torch, stored)

    card, path = torch.device("cuda"), Path("m")
    assert loading._dtype(spec_of(path), Config, card) is getattr(torch, computed)
    assert loading._dtype(spec_of(path, "float32"), Config, card) is torch.float32


def test_load_takes_a_model_that_is_made_without_files(models: dict[str, Path]) -> None:
    made: list[Load] = []

    def make(spec: Load, _placed: object) -> LoadedModel:
        made.append(spec)
        return loading.load(spec)

    engine = TextEngine(load_model=make, block_size=4)
    spec = Load(model="m", engine="text", path=str(models["qwen3"]), kv_cache_bytes=1 << 20)
    engine.load(spec, lambda _fraction: None)
    assert made == [spec]
    assert run(engine, job("a"))["a"].completion_tokens == 12
    engine.close()
