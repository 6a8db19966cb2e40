"""The transcription engine on a CUDA device: it hears what the library hears there."""

from pathlib import Path

import pytest
import torch

from tests.support.audio import melody
from tests.support.transcription_harness import (
    check_segments,
    check_together,
    open_transcription_harness,
)
from workers.protocol import TranscriptionDone

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch TF32 off: it would hide what is compared here."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def test_float32_segments_are_those_of_generate(tmp_path: Path) -> None:
    harness = open_transcription_harness(tmp_path, device="cuda", dtype="float32")
    for sound in (melody(9, 1), melody(30), melody(75)):
        check_segments(harness, sound)
    assert harness.engine.device_bytes()
    harness.engine.close()


def test_float32_files_that_run_together_do_not_disturb_each_other(tmp_path: Path) -> None:
    harness = open_transcription_harness(tmp_path, device="cuda", dtype="float32")
    check_together(harness)
    harness.engine.close()


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_half_precision_transcribes_several_files(tmp_path: Path, dtype: str | None) -> None:
    harness = open_transcription_harness(tmp_path, device="cuda", dtype=dtype)
    assert harness.engine._loaded.dtype is (torch.bfloat16 if dtype else torch.float16)
    jobs = [harness.job(melody(length, length), timestamps="word") for length in (5, 9, 40)]
    final = [each for each in harness.run(*jobs) if isinstance(each, TranscriptionDone)]
    assert len(final) == 3
    assert any(segment.words for each in final for segment in each.segments)
    harness.engine.close()
