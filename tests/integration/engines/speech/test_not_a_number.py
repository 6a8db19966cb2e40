"""Speech whose model computes NaN: its jobs fail, and nothing of it reaches the next one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.models.voices import make_vits
from tests.support.speech_harness import Booth, ends, open_booth
from workers.engines.speech.engine import SpeechEngine
from workers.protocol import Event, Failed, Load, SpeechDone, SpeechJob


@pytest.fixture(scope="module", params=[True, False], ids=["drawn", "greedy"])
def booth(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Booth]:
    booth = open_booth(tmp_path_factory.mktemp("speech"), sampled=request.param)
    yield booth
    booth.engine.close()


def nan_of(usual: Any, once: list[bool] | None = None) -> Any:
    """The same function, whose result is NaN: always, or for the calls that ``once`` names."""

    def call(*values: Any, **named: Any) -> torch.Tensor:
        made = usual(*values, **named)
        broken = once is None or (bool(once) and once.pop(0))
        return torch.full_like(made, torch.nan) if broken else made

    return call


@pytest.mark.parametrize("place", ["semantic", "semantic cache", "coarse", "fine", "codec"])
def test_nan_in_bark_ends_its_job_and_the_next_sounds_the_same(
    booth: Booth, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    bark = booth.engine._model.bark  # type: ignore[attr-defined]
    owner, name = {
        "semantic": (bark._stages["semantic"]._model.layernorm_final, "forward"),
        "semantic cache": (bark._stages["semantic"]._model.layers[0].mlp, "forward"),
        "coarse": (bark._stages["coarse"]._model.layernorm_final, "forward"),
        "fine": (bark._fine._model.layernorm_final, "forward"),
        "codec": (bark._model, "codec_decode"),
    }[place]
    before = booth.job()
    booth.run(before)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, nan_of(getattr(owner, name)))
        (failed,) = ends(booth.run(booth.job())).values()
    assert isinstance(failed, Failed)
    assert (failed.code, failed.message) == (
        "INFERENCE_FAILED",
        "The model's output is not a number.",
    )
    after = booth.job()
    booth.run(after)
    assert np.array_equal(booth.sound(after), booth.sound(before))


def test_nan_in_one_sentence_leaves_its_neighbour_s_sound(
    booth: Booth, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = booth.engine._model.bark._stages["semantic"]  # type: ignore[attr-defined]
    neighbour = booth.job("Something else")
    booth.run(neighbour)
    broken, again = booth.job(), booth.job("Something else")
    with monkeypatch.context() as patch:
        # Prompts are read one by one, the broken one's first.
        patch.setattr(stage, "read", nan_of(stage.read, once=[True]))
        final = ends(booth.run(broken, again))
    assert isinstance(final[broken.id], Failed)
    assert isinstance(final[again.id], SpeechDone)
    assert np.array_equal(booth.sound(again), booth.sound(neighbour))


def test_nan_in_the_cache_does_not_reach_the_next_sentence_of_the_slot(
    booth: Booth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A neighbour that is further on has the positions looked at at which the NaN were written."""
    undisturbed = booth.job()
    booth.run(undisturbed)
    broken, neighbour, following = booth.job(), booth.job("Something else"), booth.job()
    mlp = booth.engine._model.bark._stages["semantic"]._model.layers[0].mlp  # type: ignore[attr-defined]
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
        booth.submit(broken, neighbour)
        events: list[Event] = []
        while not any(isinstance(event, Failed) for event in events):
            events += booth.engine.step()
        events += booth.run(following)
    final = ends(events)
    assert isinstance(final[broken.id], Failed)
    assert isinstance(final[neighbour.id], SpeechDone)
    assert isinstance(final[following.id], SpeechDone)
    assert booth.sound(following).shape == booth.sound(undisturbed).shape


def test_nan_in_vits_ends_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SpeechEngine()
    path = make_vits(tmp_path / "vits")
    engine.load(Load(model="v", engine="speech", path=str(path), threads=1), lambda _: None)
    decoder = engine._model._model.decoder  # type: ignore[attr-defined]
    monkeypatch.setattr(decoder, "forward", nan_of(decoder.forward))
    engine.submit(engine.prepare(SpeechJob(id="j", text="hello", seed=1, folder=str(tmp_path))))
    events: list[Any] = []
    while engine.in_flight:
        events += engine.step()
    (failed,) = ends(events).values()
    assert isinstance(failed, Failed)
    assert failed.code == "INFERENCE_FAILED"
    engine.close()
