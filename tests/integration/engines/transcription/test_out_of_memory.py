"""Transcription when memory runs out: at load, for files together, for one file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.audio import melody
from tests.support.cuda_errors import OUT_OF_MEMORY_ERRORS, TWO_OUT_OF_MEMORY_ERRORS
from tests.support.models import whisper
from tests.support.transcription_harness import (
    TranscriptionHarness,
    open_transcription_harness,
    tokens_of,
)
from workers.engines.base import Refused
from workers.engines.batch_limit import BatchLimit
from workers.engines.transcription.engine import TranscriptionEngine
from workers.protocol import Failed, Load, TranscriptionDone

SOUNDS = [melody(3, seed) for seed in range(5)]
shapes = pytest.mark.parametrize(
    "error", TWO_OUT_OF_MEMORY_ERRORS.values(), ids=list(TWO_OUT_OF_MEMORY_ERRORS)
)


@pytest.fixture(scope="module")
def module_harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TranscriptionHarness]:
    harness = open_transcription_harness(tmp_path_factory.mktemp("harness"))
    yield harness
    harness.engine.close()


@pytest.fixture
def harness(
    module_harness: TranscriptionHarness, monkeypatch: pytest.MonkeyPatch
) -> TranscriptionHarness:
    monkeypatch.setattr(module_harness.engine, "_batch", BatchLimit(8))
    return module_harness


def raises(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


@shapes
@pytest.mark.parametrize("where", ["from_pretrained", "to"])
def test_out_of_memory_at_load_is_named_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, where: str
) -> None:
    repository = whisper.make(tmp_path / "whisper")
    monkeypatch.setattr(f"transformers.WhisperForConditionalGeneration.{where}", raises(error))
    spec = Load(model="w", engine="transcription", path=str(repository), threads=1)
    with pytest.raises(Refused) as refused:
        TranscriptionEngine().load(spec, lambda _: None)
    assert refused.value.code == "OUT_OF_MEMORY"


@shapes
def test_out_of_memory_lets_fewer_files_run_together(
    harness: TranscriptionHarness, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    alone = [harness.transcribe(sound).text for sound in SOUNDS]
    model = harness.engine._loaded.model
    usual, batches = model.forward, []

    def forward(**inputs: Any) -> Any:
        batches.append(len(inputs["decoder_input_ids"]))
        if batches[-1] > 2:
            raise error
        return usual(**inputs)

    monkeypatch.setattr(model, "forward", forward)
    jobs = [harness.job(sound) for sound in SOUNDS]
    texts = {e.id: e.text for e in harness.run(*jobs) if isinstance(e, TranscriptionDone)}
    assert [texts[job.id] for job in jobs] == alone
    assert batches[0] == 5
    assert set(batches[1:]) <= {1, 2}


@shapes
def test_out_of_memory_for_one_file_is_its_end_and_the_next_is_right(
    harness: TranscriptionHarness, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    job, expected = harness.job(SOUNDS[0]), harness.transcribe(SOUNDS[0]).text
    with monkeypatch.context() as patch:
        patch.setattr(harness.engine._loaded.model.model.encoder, "forward", raises(error))
        (final,) = [each for each in harness.run(job) if isinstance(each, Failed)]
    assert (final.id, final.code) == (job.id, "OUT_OF_MEMORY")
    assert harness.transcribe(SOUNDS[0]).text == expected


@shapes
def test_out_of_memory_while_a_file_is_decoded_is_named_as_such(
    harness: TranscriptionHarness, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(harness.engine._preprocessor._mel, "record", raises(error))
    (final,) = harness.run(harness.job(SOUNDS[0]))
    assert isinstance(final, Failed)
    assert final.code == "OUT_OF_MEMORY"


def test_out_of_memory_while_the_language_is_found_out_lets_fewer_files_run_together(
    harness: TranscriptionHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = harness.transcribe(SOUNDS[0]).text
    decoder = harness.engine._loaded.model.model.decoder
    usual, failures = decoder.forward, iter([True])

    def forward(*values: Any, **named: Any) -> Any:
        if next(failures, False):
            raise OUT_OF_MEMORY_ERRORS["cpu"]
        return usual(*values, **named)

    monkeypatch.setattr(decoder, "forward", forward)
    texts = [
        e.text
        for e in harness.run(harness.job(SOUNDS[0]), harness.job(SOUNDS[0]))
        if isinstance(e, TranscriptionDone)
    ]
    assert texts == [alone, alone]


def test_out_of_memory_changes_no_drawn_token(
    harness: TranscriptionHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = {"timestamps": "segment", "temperature": 0.8}
    alone = [tokens_of(harness.transcribe(sound, **free).segments) for sound in SOUNDS[:2]]
    model = harness.engine._loaded.model
    usual, calls = model.forward, 0

    def forward(**inputs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:  # tokens have been drawn by then
            raise torch.OutOfMemoryError
        return usual(**inputs)

    monkeypatch.setattr(model, "forward", forward)
    jobs = [harness.job(sound, **free) for sound in SOUNDS[:2]]
    final = {e.id: e for e in harness.run(*jobs) if isinstance(e, TranscriptionDone)}
    assert [tokens_of(final[job.id].segments) for job in jobs] == alone


def test_out_of_memory_limits_the_batch_for_a_while_only(
    harness: TranscriptionHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    cautious = 3
    monkeypatch.setattr(harness.engine, "_batch", BatchLimit(8, cautious))
    encoder = harness.engine._loaded.model.model.encoder
    usual, batches = encoder.forward, []

    def forward(features: Any, *values: Any, **named: Any) -> Any:
        batches.append(len(features))
        if len(batches) == 1:
            raise torch.OutOfMemoryError
        return usual(features, *values, **named)

    monkeypatch.setattr(encoder, "forward", forward)
    harness.run(*(harness.job(sound) for sound in SOUNDS[:4]))
    assert batches == [4, 2, 2]
    for _ in range(2 * cautious):
        harness.transcribe(SOUNDS[0])
    batches.clear()
    batches.append(0)
    harness.run(*(harness.job(sound) for sound in SOUNDS[:4]))
    assert batches == [0, 4]


def test_cudnn_attention_is_avoided(tmp_path: Path) -> None:
    kept = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        open_transcription_harness(tmp_path).engine.close()
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(kept)
