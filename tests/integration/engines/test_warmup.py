"""The setting warmup: the largest shapes are computed once at load, and nothing is left of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from tests.support.models import bark, pipelines, whisper
from tests.support.models.text import make_tiny_model
from tests.support.text_harness import job, load, run
from workers.engines.base import Refused
from workers.engines.image.engine import ImageEngine
from workers.engines.registry import make_engine
from workers.engines.text.runner import Runner
from workers.engines.text.warmup import WarmUp, paced
from workers.protocol import ImageOptions, Load

#: what diffusers' schedulers do with numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

ROWS, STEP = 5, 24


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("models") / "llama")


def steps_of(
    monkeypatch: pytest.MonkeyPatch, fails: Callable[[Any], bool] = lambda _: False
) -> list[tuple[int, int]]:
    """Note the steps that are computed from here on: prompt tokens, and rows of one token."""
    noted: list[tuple[int, int]] = []
    usual = Runner.launch

    def noting(self: Runner, plan: Any, carry: Any) -> Any:
        if fails(plan):
            raise torch.OutOfMemoryError("CUDA out of memory")
        noted.append((sum(each.end - each.start for each in plan.prefills), len(plan.decodes)))
        return usual(self, plan, carry)

    monkeypatch.setattr(Runner, "launch", noting)
    return noted


def test_warmup_of_text_computes_a_full_step_and_all_rows_and_changes_no_answer(
    text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold, _ = load(text, max_batch=ROWS, step_tokens=STEP)
    jobs = [job("a"), job("b", temperature=1.0, seed=3)]
    expected = {name: done.text for name, done in run(cold, *jobs).items()}
    cold.close()
    with monkeypatch.context() as patch:
        steps = steps_of(patch)
        engine, ready = load(text, max_batch=ROWS, step_tokens=STEP, warmup=True)
    # The load's own check of the model takes one row at a time.
    assert max(tokens for tokens, _ in steps) == STEP
    assert max(rows for _, rows in steps) == ROWS == ready.slots
    assert engine.in_flight == 0
    assert not any(engine.books().values())
    assert {name: done.text for name, done in run(engine, *jobs).items()} == expected
    engine.close()


@pytest.mark.parametrize(
    ("tokens", "seconds", "step"),
    [(2048, 0.05, 2048), (2048, 0.3, 1024), (2048, 0.5, 512), (2048, 9.0, 256), (500, 0.05, 1024)],
)
def test_warmup_finds_the_step_size_that_keeps_latency_low(
    tokens: int, seconds: float, step: int
) -> None:
    assert paced(2048, tokens, seconds) == step


def test_warmup_on_a_slow_card_takes_smaller_steps(
    text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, ready = load(text, max_batch=ROWS, step_tokens=STEP)
    monkeypatch.setattr("workers.engines.text.warmup.paced", lambda usual, *_: usual // 2)
    steps = steps_of(monkeypatch)
    warmup = WarmUp(
        engine,
        engine._scheduler,
        context=ready.max_context or 1,
        vocab_size=engine._loaded.vocab_size,
    )
    warmup.pace()
    assert max(tokens for tokens, _ in steps) == STEP
    steps.clear()
    warmup.run(rows=1)
    assert max(tokens for tokens, _ in steps) == STEP // 2
    assert not any(engine.books().values())
    engine.close()


@pytest.mark.parametrize("warmup", [None, False])
def test_warmup_of_text_is_left_out_on_a_cpu_and_by_the_setting(
    text: Path, monkeypatch: pytest.MonkeyPatch, warmup: bool | None
) -> None:
    steps = steps_of(monkeypatch)
    engine, _ = load(text, max_batch=ROWS, step_tokens=STEP, warmup=warmup)
    assert max(rows for _, rows in steps) == 1
    engine.close()


def test_warmup_that_runs_out_of_memory_takes_smaller_steps_and_loads(
    text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps_of(monkeypatch, lambda plan: plan.tokens > STEP // 2)
    engine, _ = load(text, max_batch=ROWS, step_tokens=STEP, warmup=True)
    assert engine._scheduler.step_tokens <= STEP // 2 + ROWS, "the next large step is not tried"
    assert set(run(engine, job("a"))) == {"a"}
    engine.close()


@pytest.mark.parametrize("fails", [False, True])
def test_warmup_of_images_draws_a_whole_pass_of_the_usual_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    path = pipelines.make("sd", tmp_path / "sd")
    drawn: list[tuple[int, ...]] = []
    vae_class = AutoencoderKL
    decode = vae_class.decode

    def noting(self: Any, latents: torch.Tensor, *values: Any, **named: Any) -> Any:
        drawn.append(tuple(latents.shape))
        if fails:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(self, latents, *values, **named)

    monkeypatch.setattr(vae_class, "decode", noting)
    spec = Load(
        model="m",
        engine="image",
        path=str(path),
        threads=1,
        max_batch=3,
        warmup=True,
        image=ImageOptions(width=128, height=64),
    )
    engine = ImageEngine()
    engine.load(spec, lambda _: None)
    assert drawn == [(3, 4, 8, 16)] * (1 + fails), "once more in tiles"
    assert engine.in_flight == 0
    engine.close()


@pytest.mark.parametrize(
    ("engine", "make"), [("speech", bark.make), ("transcription", whisper.make)]
)
def test_warmup_of_other_models_is_refused_by_name(
    tmp_path: Path, engine: str, make: Callable[[Path], Path]
) -> None:
    spec = Load(model="m", engine=engine, path=str(make(tmp_path)), threads=1, warmup=True)
    with pytest.raises(Refused) as refused:
        make_engine(engine).load(spec, lambda _: None)
    assert "warmup" in refused.value.message
