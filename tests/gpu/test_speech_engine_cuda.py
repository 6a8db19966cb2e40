"""The speech engine on a CUDA device: the library's sounds there, and steps as graphs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoProcessor, BarkModel

from tests.support.engine_runs import run_to_end
from tests.support.models.bark import VOICES, make
from workers.engines.cuda_graphs import cuda_capture
from workers.engines.speech.bark.gpt import CacheSlot, Stage
from workers.engines.speech.engine import SpeechEngine
from workers.engines.torch_env import choose_dtype, dtype_name
from workers.protocol import Failed, Load, SpeechDone, SpeechJob, audio_file_name

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LINES = [("Hello there.", VOICES[1]), ("Something else", VOICES[0]), ("No voice", None)]


def load(path: Path, dtype: str | None) -> SpeechEngine:
    engine = SpeechEngine()
    spec = Load(model="bark", engine="speech", path=str(path), device="cuda", dtype=dtype)
    ready = engine.load(spec, lambda _fraction: None)
    assert ready.device == "cuda"
    assert ready.dtype == dtype_name(choose_dtype("bark", spec, torch.device("cuda")))
    return engine


def speak(engine: SpeechEngine, folder: Path, lines: list[tuple[str, str | None]]) -> list[Any]:
    """Samples of each line, all submitted at once."""
    jobs = [
        SpeechJob(id=f"job{n}", text=text, voice=voice, seed=n, folder=str(folder))
        for n, (text, voice) in enumerate(lines)
    ]
    events = run_to_end(engine, *jobs)
    assert not [each for each in events if isinstance(each, Failed)]
    assert len([each for each in events if isinstance(each, SpeechDone)]) == len(lines)
    names = [audio_file_name(f"job{n}", "wav") for n in range(len(lines))]
    return [soundfile.read(folder / name, dtype="float32")[0] for name in names]


def test_greedy_sounds_are_the_library_s(tmp_path: Path) -> None:
    path = make(tmp_path / "bark", sampled=False)
    engine = load(path, "float32")
    model = BarkModel.from_pretrained(path, dtype=torch.float32).eval().to("cuda")
    processor = AutoProcessor.from_pretrained(path)
    spoken = speak(engine, tmp_path, LINES)
    for (text, voice), samples in zip(LINES, spoken, strict=True):
        asked = processor(text, voice_preset=voice, max_length=48).to("cuda")
        expected = model.generate(**asked)[0].cpu().numpy()
        assert 0 < len(samples) <= len(expected)  # silence at the ends is cut off
        found = np.correlate(expected, samples, mode="valid").argmax()
        assert np.abs(samples - expected[found : found + len(samples)]).max() < 1e-3
    engine.close()


def test_seed_in_half_precision_gives_the_same_sound_alone_again(tmp_path: Path) -> None:
    engine = load(make(tmp_path / "bark"), None)
    first, again = (speak(engine, tmp_path, LINES[:1])[0] for _ in range(2))
    assert np.array_equal(first, again)
    engine.close()


def test_cuda_graphs_compute_what_the_steps_without_them_do(tmp_path: Path) -> None:
    path = make(tmp_path / "bark")
    model = BarkModel.from_pretrained(path, dtype=torch.float32).eval().requires_grad_(False)
    stages = {
        "cuda": Stage(model.to("cuda").semantic, 3, range(61), cuda_capture()),
        "cpu": Stage(BarkModel.from_pretrained(path, dtype=torch.float32).semantic, 3, range(61)),
    }
    for count in (1, 2, 3):
        made = {}
        for device, stage in stages.items():
            rows = [_begin(stage, 10 * n + 5) for n in range(count)]
            with torch.no_grad():
                steps = [stage.step(rows, list(range(n, n + count))).cpu() for n in range(4)]
            made[device] = torch.stack(steps)
            for row in rows:
                stage.close(row)
        assert torch.allclose(made["cuda"], made["cpu"], atol=1e-2, rtol=1e-3)


def _begin(stage: Stage, length: int) -> CacheSlot:
    row = stage.open()
    assert row is not None
    with torch.no_grad():
        stage.read([row], stage.embed(torch.arange(length, device=stage.device)[None]))
    return row
