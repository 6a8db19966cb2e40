"""Steps of single tokens as graphs: captures that compute again over the same tensors stand in for
a card's, so what lies in these tensors is what counts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor

from tests.integration.engines.text.test_overlap import mixed_jobs, told
from tests.support.engine_runs import step_until, submit
from tests.support.logs import CaughtLogs
from tests.support.models.sequential_text import make_sequential_model
from tests.support.models.text import make_tiny_model
from tests.support.text_harness import BLOCK_SIZE, distance_from_library, done, job, load, run
from workers.engines.base import Refused
from workers.engines.cuda_graphs import Replay
from workers.engines.text import attention, decode_graphs, runners
from workers.engines.text.batch import Batch, BatchBuilder, Carry, PagedRows
from workers.engines.text.cache import PagedCache
from workers.engines.text.engine import TextEngine
from workers.engines.text.runner import Runner
from workers.engines.text.sampling_params import upload
from workers.protocol import Overlap, TextDone, TextOptions

BLOCK_BYTES = 3 * 64 * 4 * BLOCK_SIZE  #: of the tiny llama, in float32


def rehearsed(step: Replay) -> Replay:
    """Return a replay that leaves its logits where those of the one before were."""
    logits = step().clone()

    def replay() -> torch.Tensor:
        return logits.copy_(step())

    return replay


@pytest.fixture(autouse=True)
def _captures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "_capture", lambda _loaded, _graphs: rehearsed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def alone(folder: Path) -> Iterator[dict[str, TextDone]]:
    engine, _ = load(folder, step_tokens=16)
    yield {one.id: run(engine, one)[one.id] for one in mixed_jobs()}
    engine.close()


def runner_of(engine: TextEngine) -> Runner:
    assert isinstance(engine._runner, Runner)
    return engine._runner


@pytest.mark.parametrize(("overlap", "cache"), [("off", 1 << 20), ("on", 28 * BLOCK_BYTES)])
def test_graphs_change_no_answer(
    folder: Path, alone: dict[str, TextDone], overlap: Overlap, cache: int
) -> None:
    """Rows come and go, are preempted, and wait for grammars; steps have more rows than are in
    use, and the tables of rows hold what was there before."""
    options = TextOptions(overlap=overlap, graphs="lazy")
    engine, _ = load(folder, step_tokens=16, kv_cache_bytes=cache, text=options)
    ends = {}
    for start in (0, 5):
        jobs = mixed_jobs()[start:] + mixed_jobs()[:start]
        submit(engine, *jobs[:3])
        events = step_until(engine, lambda events: len(events) > 12)
        submit(engine, *jobs[3:])
        ends = done(events + step_until(engine, lambda _: not engine.in_flight))
        for name, end in ends.items():
            assert told(end) == told(alone[name])
        assert len(ends) == len(alone)
        assert not any(engine.books().values())
    assert runner_of(engine).graphs > 3
    engine.close()


@pytest.mark.parametrize(
    ("family", "kept"), [("qwen3", "auto"), ("gemma2", "auto"), ("gpt2", "auto"), ("llama", "fp8")]
)
def test_graphs_of_each_family_compute_as_plain_steps_do(
    tmp_path: Path, family: str, kept: Any
) -> None:
    folder = make_tiny_model(family, tmp_path)
    jobs = [job(str(n), "one two three " * (1 + 4 * n), max_tokens=20) for n in range(3)]
    texts = []
    plain = TextOptions(kv_cache_dtype=kept)
    for options in (plain, replace(plain, graphs="warmup", overlap="on")):
        engine, _ = load(folder, max_batch=3, text=options)
        texts.append({name: end.text for name, end in run(engine, *jobs).items()})
        captured = runner_of(engine).graphs
        engine.close()
        assert captured == (0 if options.graphs == "off" else 3), "of 1, 2 and 3 rows"
    assert texts[0] == texts[1]


def test_graphs_ask_for_the_card_s_free_memory_once_for_many_steps(
    folder: Path, alone: dict[str, TextDone], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = load(folder, text=TextOptions(graphs="lazy", overlap="on"))
    captured, asked = runner_of(engine).graphs, 0

    def no_room(_device: torch.device) -> bool:
        nonlocal asked
        asked += 1
        return False

    monkeypatch.setattr(decode_graphs, "has_room", no_room)
    ends = run(engine, *mixed_jobs())
    assert {name: told(end) for name, end in ends.items()} == {
        name: told(end) for name, end in alone.items()
    }
    graphs = runner_of(engine)._graphs
    assert graphs is not None
    assert asked == len(graphs._rests) > 1, "once for each size"
    assert graphs.captured == captured
    engine.close()


def test_size_that_memory_does_not_suffice_for_leaves_the_others_their_graphs(
    folder: Path, alone: dict[str, TextDone], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the kernel a graph copies the pages of all its rows: the largest take gigabytes."""
    engine, _ = load(folder, text=TextOptions(graphs="lazy", overlap="on"))
    graphs = runner_of(engine)._graphs
    assert graphs is not None
    captured, refused = graphs.captured, 0

    def full_at_first(step: Replay) -> Replay:
        nonlocal refused
        refused += 1
        if refused == 1:
            raise torch.OutOfMemoryError("made up")
        return rehearsed(step)

    monkeypatch.setattr(graphs, "_capture", full_at_first)
    ends = run(engine, *mixed_jobs())
    assert {name: told(end) for name, end in ends.items()} == {
        name: told(end) for name, end in alone.items()
    }
    assert graphs.captured > captured
    assert len(graphs._rests) == 1
    engine.close()


def test_graphs_hold_what_a_plain_step_is_built_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = load(folder, step_tokens=16, text=TextOptions(graphs="lazy", overlap="on"))
    runner = runner_of(engine)
    graphs = runner._graphs
    assert graphs is not None
    builder: BatchBuilder = runner._builder
    whole, compared = graphs.run, 0

    def comparing(plan: Any, carry: Carry | None) -> Any:
        nonlocal compared
        found = whole(plan, carry)
        if found is None:
            return None
        batch = builder.build(plan, carry)
        numbers = torch.stack((batch.ids, batch.positions, batch.slots))
        for row, chunk in enumerate(found[0]):
            place = next(n for n, each in enumerate(batch.order) if each is chunk)
            assert torch.equal(graphs._numbers[:3, row], numbers[:, place])
            assert graphs._numbers[3, row] == chunk.end
            blocks = chunk.sequence.blocks
            table = graphs._table._table[row].tolist()
            assert table == blocks + [0] * (len(table) - len(blocks))
            compared += 1
        return found

    def captured(batch: Batch, cache: PagedCache) -> Tensor:
        assert not cache._shares, "a graph would read memory that others free"
        return forward(batch, cache)

    forward = graphs._forward
    monkeypatch.setattr(graphs, "_forward", captured)
    monkeypatch.setattr(graphs, "run", comparing)
    run(engine, *mixed_jobs())
    assert compared > 20, "how many depends on when the grammar is compiled"
    engine.close()


def attend_by_the_table(
    query: Tensor, cache: PagedCache, layer: int, rows: PagedRows, how: Any
) -> Tensor:
    """Compute what the kernel does, by means that run everywhere."""
    shape = cache.shapes[layer]
    pages = cache.pages[layer].view(-1, cache.block_size * shape.width)
    found = []
    for row in range(rows.count):
        held = pages[rows.table[row].long()].view(-1, shape.width)[: rows.lengths[row]]
        split = shape.kv_heads * shape.key_dim
        keys = held[:, :split].view(-1, shape.kv_heads, shape.key_dim)
        values = held[:, split:].view(-1, shape.kv_heads, shape.value_dim)
        grouped = query[row].view(shape.kv_heads, -1, shape.key_dim)
        weights = torch.einsum("hgd,thd->hgt", grouped, keys).mul(how.scaling).softmax(-1)
        found.append(torch.einsum("hgt,thd->hgd", weights, values).reshape(-1))
    assert int(rows.lengths.max()) <= rows.longest
    return torch.stack(found)


def test_graphs_beside_the_kernel_give_it_the_rows_in_place(
    folder: Path, alone: dict[str, TextDone], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners, "unusable", lambda *_, **__: None)
    monkeypatch.setattr(attention, "_decode_in_place", attend_by_the_table)
    options = TextOptions(attention="triton", graphs="lazy", overlap="on")
    engine, _ = load(folder, step_tokens=16, text=options)
    ends = run(engine, *mixed_jobs())
    assert {name: told(end) for name, end in ends.items()} == {
        name: told(end) for name, end in alone.items()
    }
    assert runner_of(engine).graphs > 1
    engine.close()


def test_graphs_compute_a_step_again_that_ran_out_of_memory(
    folder: Path, alone: dict[str, TextDone], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails after it was planned which rows get further blocks."""
    send, failed = upload, 0

    def fails(device: torch.device, *, ints: Any) -> dict[str, Tensor]:
        nonlocal failed
        if len(ints["places"]) and len(ints["numbers"]) > 8:  # more than two rows
            failed += 1
            if failed % 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return send(device, ints=ints)

    engine, _ = load(folder, step_tokens=16, text=TextOptions(graphs="lazy", overlap="on"))
    monkeypatch.setattr(decode_graphs, "upload", fails)
    ends = run(engine, *mixed_jobs())
    assert {name: told(end) for name, end in ends.items()} == {
        name: told(end) for name, end in alone.items()
    }
    assert failed > 4
    engine.close()


def test_graphs_that_cannot_be_captured_leave_plain_steps(
    folder: Path,
    alone: dict[str, TextDone],
    monkeypatch: pytest.MonkeyPatch,
    caplog: CaughtLogs,
) -> None:
    calls = 0

    def fails(step: Replay) -> Replay:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise RuntimeError("operation not permitted when stream is capturing")
        return rehearsed(step)

    monkeypatch.setattr(runners, "_capture", lambda _loaded, _graphs: fails)
    engine, _ = load(folder, step_tokens=16, text=TextOptions(graphs="lazy"))
    ends = run(engine, *mixed_jobs())
    assert {name: told(end) for name, end in ends.items()} == {
        name: told(end) for name, end in alone.items()
    }
    assert calls == 3, "it is not tried again"
    assert "without graphs from now on" in caplog.text
    engine.close()


def test_graphs_that_compute_otherwise_are_not_used(
    folder: Path,
    alone: dict[str, TextDone],
    monkeypatch: pytest.MonkeyPatch,
    caplog: CaughtLogs,
) -> None:
    def stale(step: Replay) -> Replay:
        logits = step().clone()
        return lambda: logits

    monkeypatch.setattr(runners, "_capture", lambda _loaded, _graphs: stale)
    engine, _ = load(folder, step_tokens=16, text=TextOptions(graphs="lazy"))
    assert runner_of(engine).graphs == 0
    assert "they give other logits" in caplog.text
    one = mixed_jobs()[0]
    assert told(run(engine, one)[one.id]) == told(alone[one.id])
    engine.close()


def test_graph_that_goes_wrong_later_is_dropped_before_it_is_served(
    folder: Path,
    alone: dict[str, TextDone],
    monkeypatch: pytest.MonkeyPatch,
    caplog: CaughtLogs,
) -> None:
    """Graphs captured at load are right; memory does not suffice to compute what one of the others
    is compared with, nor to compare another one."""
    engine, _ = load(folder, step_tokens=16, text=TextOptions(graphs="lazy", overlap="on"))
    graphs = runner_of(engine)._graphs
    assert graphs is not None
    usual, near, captured, full = graphs._step, graphs._are_near, set(graphs._captured), 0

    def stale(step: Any) -> Replay:
        logits = step().clone()
        return lambda: logits

    def step(rows: int, length: int, with_loras: bool) -> Tensor:
        nonlocal full
        if (rows, length, with_loras) in graphs._untried:
            full += 1
            if full == 1:
                raise torch.OutOfMemoryError("made up")
        return usual(rows, length, with_loras)

    monkeypatch.setattr(graphs, "_capture", stale)

    def are_near(ours: Tensor, plain: Tensor) -> bool:
        if full == 2:
            raise torch.OutOfMemoryError("made up")
        return near(ours, plain)

    monkeypatch.setattr(graphs, "_step", step)
    monkeypatch.setattr(graphs, "_are_near", are_near)
    ends = run(engine, *mixed_jobs())
    assert {name: told(end) for name, end in ends.items()} == {
        name: told(end) for name, end in alone.items()
    }
    assert full > 2
    assert set(graphs._captured) == captured, "no other one is kept"
    assert caplog.text.count("other logits than its step") == len(graphs._wrong) == full - 2
    engine.close()


def test_graphs_are_refused_where_there_can_be_none(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_sequential_model("lfm2", tmp_path / "lfm2")
    with pytest.raises(Refused, match=r"text\.graphs is lazy, which is not for this model"):
        load(other, text=TextOptions(graphs="lazy"))
    monkeypatch.undo()
    with pytest.raises(Refused, match=r"text\.graphs is warmup, but the model does not run on"):
        load(folder, text=TextOptions(graphs="warmup"))


def test_graphs_of_longrope_capture_no_look_at_the_length(tmp_path: Path) -> None:
    """The library compares the largest position in each pass, and writes the frequencies anew."""
    folder = make_tiny_model("llama", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.5] * 8,
        "long_factor": [2.0] * 8,
        "factor": 2.0,
        "original_max_position_embeddings": 128,
    }
    (folder / "config.json").write_text(json.dumps(config))
    engine, ready = load(folder)
    assert ready.max_context == 128
    one = job("a", prompt="word " * 9, logprobs=0)
    ids = engine.prepare(one).prompts[0].ids
    rotary = engine._loaded.model.model.rotary_emb
    before = rotary.inv_freq._version
    end = run(engine, one)["a"]
    assert max(distance_from_library(folder, torch.float32, "cpu", ids, end)) <= 1e-3
    assert rotary.inv_freq._version == before
    engine.close()
