"""Speech when memory runs out or a library fails: at load, and at any place of a step."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from tests.support.cuda_errors import TWO_OUT_OF_MEMORY_ERRORS
from tests.support.engine_runs import finals, run_to_end
from tests.support.engines import inside
from tests.support.models.bark import make
from tests.support.models.voices import make_vits
from tests.support.speech_harness import SpeechHarness, open_speech_harness
from workers.engines.base import Refused
from workers.engines.batch_limit import BatchLimit
from workers.engines.speech.bark import sampling
from workers.engines.speech.bark.speaker import BarkSpeaker
from workers.engines.speech.engine import SpeechEngine
from workers.protocol import Failed, Load, SpeechDone, SpeechJob, audio_file_name

TEXTS = ["Hello there. How are you? Fine!", "Other words. And more of it.", "One"]
shapes = pytest.mark.parametrize(
    "error", TWO_OUT_OF_MEMORY_ERRORS.values(), ids=list(TWO_OUT_OF_MEMORY_ERRORS)
)


@pytest.fixture(scope="module")
def module_harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpeechHarness]:
    harness = open_speech_harness(tmp_path_factory.mktemp("speech"), sampled=True)
    yield harness
    harness.engine.close()


@pytest.fixture
def harness(module_harness: SpeechHarness, monkeypatch: pytest.MonkeyPatch) -> SpeechHarness:
    monkeypatch.setattr(module_harness.engine, "_batch", BatchLimit(1000))
    return module_harness


@pytest.fixture(scope="module")
def undisturbed(module_harness: SpeechHarness) -> list[Any]:
    jobs = jobs_of(module_harness)
    module_harness.run(*jobs)
    return [module_harness.sound(job) for job in jobs]


def jobs_of(harness: SpeechHarness) -> list[SpeechJob]:
    return [harness.job(text, seed=number) for number, text in enumerate(TEXTS)]


def raises(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


class FailAt:
    """Wraps a function so that the calls of some numbers do all that it does and then fail."""

    def __init__(
        self,
        usual: Callable[..., Any],
        calls: set[int],
        error: Exception,
        when: Callable[[], bool] = lambda: True,
    ) -> None:
        """Calls count while ``when`` says so."""
        self._usual, self._calls, self._error, self._when = usual, calls, error, when
        self._count = 0
        self.failures = 0

    def __call__(self, *values: Any, **named: Any) -> Any:
        made = self._usual(*values, **named)
        self._count += self._when()
        if self._when() and self._count in self._calls:
            self.failures += 1
            raise self._error
        return made


@shapes
@pytest.mark.parametrize("where", ["from_pretrained", "to"])
def test_out_of_memory_at_load_is_named_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, where: str
) -> None:
    repository = make(tmp_path / "bark", tokens=8)
    monkeypatch.setattr(f"transformers.BarkModel.{where}", raises(error))
    spec = Load(model="bark", engine="speech", path=str(repository), threads=1)
    with pytest.raises(Refused) as refused:
        SpeechEngine().load(spec, lambda _: None)
    assert refused.value.code == "OUT_OF_MEMORY"


@shapes
def test_out_of_memory_for_each_sentence_ends_the_jobs_and_the_next_is_right(
    harness: SpeechHarness,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: list[Any],
    error: Exception,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(harness.engine._model, "step", raises(error))
        final = finals(harness.run(*jobs_of(harness)))
    assert [each.code for each in final.values() if isinstance(each, Failed)] == [
        "OUT_OF_MEMORY"
    ] * 3
    jobs = jobs_of(harness)
    harness.run(*jobs)
    assert all(map(np.array_equal, map(harness.sound, jobs), undisturbed))


@shapes
def test_out_of_memory_has_fewer_sentences_computed_together(
    harness: SpeechHarness,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: list[Any],
    error: Exception,
) -> None:
    usual, sizes = harness.engine._model.step, []

    def step(utterances: Any) -> None:
        sizes.append(len(utterances))
        if len(utterances) > 1:
            raise error
        usual(utterances)

    monkeypatch.setattr(harness.engine._model, "step", step)
    jobs = jobs_of(harness)
    assert all(isinstance(each, SpeechDone) for each in finals(harness.run(*jobs)).values())
    assert sizes[:2] == [3, 1]
    assert all(map(np.array_equal, map(harness.sound, jobs), undisturbed))


@pytest.mark.parametrize(
    ("place", "calls"),
    [
        ("semantic read", {1, 2}),
        ("semantic forward", {5, 30}),
        ("coarse read", {1, 4}),
        ("coarse forward", {2, 50}),
        ("draw", {7, 60, 200}),
        ("fine layers", {1, 3, 9}),
        ("codec", {1, 2}),
    ],
)
def test_out_of_memory_anywhere_in_bark_changes_no_sound(
    harness: SpeechHarness,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: list[Any],
    place: str,
    calls: set[int],
) -> None:
    """A failed step is made again by fewer sentences, from where it began."""
    assert isinstance(harness.engine._model, BarkSpeaker)
    bark = harness.engine._model.bark
    owner, name = {
        "semantic read": (bark._stages["semantic"], "read"),
        "semantic forward": (bark._stages["semantic"], "step"),
        "coarse read": (bark._stages["coarse"], "read"),
        "coarse forward": (bark._stages["coarse"], "step"),
        "draw": (sampling, "_draw"),
        "fine layers": (bark._fine._model.layernorm_final, "forward"),
        "codec": (bark._model, "codec_decode"),
    }[place]
    together = 0
    usual_step = bark.step

    def step(utterances: Any) -> None:
        nonlocal together
        together = len(utterances)
        usual_step(utterances)

    failing = FailAt(
        getattr(owner, name), calls, torch.OutOfMemoryError(), when=lambda: together > 1
    )
    monkeypatch.setattr(owner, name, failing)
    monkeypatch.setattr(bark, "step", step)
    monkeypatch.setattr(bark, "_together", 8)
    monkeypatch.setattr(harness.engine, "_batch", BatchLimit(1000, cautious=1))
    jobs = jobs_of(harness)
    final = finals(harness.run(*jobs))
    assert all(isinstance(each, SpeechDone) for each in final.values())
    assert failing.failures == len(calls)
    for job, expected in zip(jobs, undisturbed, strict=True):
        found = harness.sound(job)
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).max() <= 2  # several are rounded otherwise


def test_out_of_memory_limits_no_sentence_that_holds_what_others_wait_for(
    tmp_path: Path, undisturbed: list[Any]
) -> None:
    """With fewer rows than sentences, the first in turn may be without a row."""
    harness = open_speech_harness(tmp_path, sampled=True, max_batch=2)
    jobs = jobs_of(harness)
    harness.submit(*jobs)
    while harness.engine.books()["rows"] < 2:
        harness.engine.step()
    waiting, *holding = sorted(
        harness.engine._requests.values(), key=lambda request: request.running[0].is_held
    )
    assert [request.running[0].is_held for request in (waiting, *holding)] == [False, True, True]
    waiting.served_at = -1  # it is the next in turn, and the only one that a limit of 1 would leave
    harness.engine._batch = BatchLimit(1000, cautious=1_000_000)
    harness.engine._batch.halve(2)
    harness.run()
    assert all(map(np.array_equal, map(harness.sound, jobs), undisturbed))
    harness.engine.close()


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2"), IndexError("out of range")])
def test_error_of_a_library_ends_its_jobs_only(
    harness: SpeechHarness,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: list[Any],
    error: Exception,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(harness.engine._model, "step", raises(error))
        final = finals(harness.run(*jobs_of(harness)))
    assert [each.code for each in final.values() if isinstance(each, Failed)] == [
        "INFERENCE_FAILED"
    ] * 3
    jobs = jobs_of(harness)
    harness.run(*jobs)
    assert all(map(np.array_equal, map(harness.sound, jobs), undisturbed))


def test_error_on_a_card_that_is_not_memory_ends_the_worker(
    harness: SpeechHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = harness.job()
    harness.submit(job)
    with monkeypatch.context() as patch:
        patch.setattr(harness.engine, "_device", "cuda")
        patch.setattr(harness.engine._model, "step", raises(RuntimeError("device-side assert")))
        with pytest.raises(RuntimeError, match="device-side assert"):
            harness.engine.step()
    harness.engine.cancel(job.id)
    harness.run()


def test_out_of_memory_in_vits_ends_one_job_and_the_others_sound_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = SpeechEngine()
    path = make_vits(tmp_path / "vits")
    engine.load(Load(model="v", engine="speech", path=str(path), threads=1), lambda _: None)
    vits = inside(engine)._model._model

    def run(prefix: str) -> dict[str, Any]:
        jobs = [
            SpeechJob(id=f"{prefix}{number}", text=text, seed=number, folder=str(tmp_path))
            for number, text in enumerate(("hello there", "how are you", "fine"))
        ]
        return finals(run_to_end(engine, *jobs))

    run("a")
    with monkeypatch.context() as patch:
        # 3 sentences, 1, and that one again: its job finals, the other two are heard
        patch.setattr(vits, "forward", FailAt(vits.forward, {1, 2}, torch.OutOfMemoryError()))
        final = run("b")
    assert [type(final[f"b{number}"]) for number in range(3)] == [Failed, SpeechDone, SpeechDone]
    with monkeypatch.context() as patch:
        patch.setattr(vits, "forward", FailAt(vits.forward, {1}, torch.OutOfMemoryError()))
        engine._batch = BatchLimit(1000)
        final = run("c")
    assert all(isinstance(each, SpeechDone) for each in final.values())
    for other, number in (("b", 1), ("b", 2), ("c", 0), ("c", 1), ("c", 2)):
        sounds = [
            soundfile.read(tmp_path / audio_file_name(f"{name}{number}", "wav"))[0]
            for name in ("a", other)
        ]
        assert np.array_equal(*sounds)
    engine.close()


def test_cudnn_attention_is_avoided(tmp_path: Path) -> None:
    kept = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        open_speech_harness(tmp_path, sampled=False).engine.close()
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(kept)
