"""Speech whose model computes NaN: its jobs fail, and nothing of it reaches the next one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.engine_runs import finals, run_to_end
from tests.support.engines import inside
from tests.support.models.voices import make_vits
from tests.support.speech_harness import SpeechHarness, open_speech_harness
from workers.engines.speech.engine import SpeechEngine
from workers.protocol import Event, Failed, Load, SpeechDone, SpeechJob


@pytest.fixture(scope="module", params=[True, False], ids=["drawn", "greedy"])
def harness(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SpeechHarness]:
    harness = open_speech_harness(tmp_path_factory.mktemp("speech"), sampled=request.param)
    yield harness
    harness.engine.close()


def nan_of(usual: Any, once: list[bool] | None = None) -> Any:
    """Return the same function, with NaN as its result: always, or for the calls that ``once``
    names."""

    def call(*values: Any, **named: Any) -> torch.Tensor:
        made = usual(*values, **named)
        broken = once is None or (bool(once) and once.pop(0))
        return torch.full_like(made, torch.nan) if broken else made

    return call


@pytest.mark.parametrize("place", ["semantic", "semantic cache", "coarse", "fine", "codec"])
def test_nan_in_bark_ends_its_job_and_the_next_sounds_the_same(
    harness: SpeechHarness, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    bark = inside(harness.engine)._model.bark
    owner, name = {
        "semantic": (bark._stages["semantic"]._model.layernorm_final, "forward"),
        "semantic cache": (bark._stages["semantic"]._model.layers[0].mlp, "forward"),
        "coarse": (bark._stages["coarse"]._model.layernorm_final, "forward"),
        "fine": (bark._fine._model.layernorm_final, "forward"),
        "codec": (bark._model, "codec_decode"),
    }[place]
    before = harness.job()
    harness.run(before)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, nan_of(getattr(owner, name)))
        (failed,) = finals(harness.run(harness.job())).values()
    assert isinstance(failed, Failed)
    assert (failed.code, failed.message) == (
        "INFERENCE_FAILED",
        "The model's output is not a number.",
    )
    after = harness.job()
    harness.run(after)
    assert np.array_equal(harness.sound(after), harness.sound(before))


def test_nan_in_one_sentence_leaves_its_neighbour_s_sound(
    harness: SpeechHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = inside(harness.engine)._model.bark._stages["semantic"]
    neighbour = harness.job("Something else")
    harness.run(neighbour)
    broken, again = harness.job(), harness.job("Something else")
    with monkeypatch.context() as patch:
        # Prompts are read one by one, the broken one's first.
        patch.setattr(stage, "read", nan_of(stage.read, once=[True]))
        final = finals(harness.run(broken, again))
    assert isinstance(final[broken.id], Failed)
    assert isinstance(final[again.id], SpeechDone)
    assert np.array_equal(harness.sound(again), harness.sound(neighbour))


def test_nan_in_the_cache_does_not_reach_the_next_sentence_of_the_slot(
    harness: SpeechHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A neighbour that is further on has the positions looked at at which the NaN were written."""
    undisturbed = harness.job()
    harness.run(undisturbed)
    broken, neighbour, following = harness.job(), harness.job("Something else"), harness.job()
    mlp = inside(harness.engine)._model.bark._stages["semantic"]._model.layers[0].mlp
    usual, steps = mlp.forward, 0

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        made: torch.Tensor = usual(hidden)
        if hidden.shape[1] == 1:  # a token of each, not a prompt
            steps += 1
            if steps == 3:
                made[0] = torch.nan
        return made

    with monkeypatch.context() as patch:
        patch.setattr(mlp, "forward", forward)
        harness.submit(broken, neighbour)
        events: list[Event] = []
        while not any(isinstance(event, Failed) for event in events):
            events += harness.engine.step()
        events += harness.run(following)
    final = finals(events)
    assert isinstance(final[broken.id], Failed)
    assert isinstance(final[neighbour.id], SpeechDone)
    assert isinstance(final[following.id], SpeechDone)
    assert harness.sound(following).shape == harness.sound(undisturbed).shape


def test_nan_in_vits_ends_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SpeechEngine()
    path = make_vits(tmp_path / "vits")
    engine.load(Load(model="v", engine="speech", path=str(path), threads=1), lambda _: None)
    decoder = inside(engine)._model._model.decoder
    monkeypatch.setattr(decoder, "forward", nan_of(decoder.forward))
    job = SpeechJob(id="j", text="hello", seed=1, folder=str(tmp_path))
    (failed,) = finals(run_to_end(engine, job)).values()
    assert isinstance(failed, Failed)
    assert failed.code == "INFERENCE_FAILED"
    engine.close()
