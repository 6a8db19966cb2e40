"""Runs a speech engine with a tiny Bark beside the library's own model."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import soundfile
import torch
from transformers import AutoProcessor, BarkModel

from tests.support.engine_runs import run_to_end, submit
from tests.support.models.bark import VOICES, make
from workers.engines.speech.engine import SpeechEngine
from workers.protocol import (
    DeviceKind,
    Event,
    Load,
    SpeechJob,
    audio_file_name,
)

LINES = [("Hello there.", VOICES[1]), ("Something else", VOICES[0]), ("No voice", None)]


@dataclass
class SpeechHarness:
    """Holds an engine, the library's model, and where sounds go."""

    folder: Path
    engine: SpeechEngine
    model: Any
    processor: Any
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(10_000)))

    def job(self, text: str = "Hello there.", **fields: Any) -> SpeechJob:
        name = fields.pop("id", f"job{next(self.numbers)}")
        fields = {"voice": VOICES[0], "seed": 3, "folder": str(self.folder), **fields}
        return SpeechJob(id=name, text=text, **fields)

    def submit(self, *jobs: SpeechJob) -> None:
        submit(self.engine, *jobs)

    def run(self, *jobs: SpeechJob) -> list[Event]:
        """Run jobs, and those that run already, to their ends."""
        return run_to_end(self.engine, *jobs)

    def library(self, text: str, voice: str | None, seed: int) -> Any:
        asked = self.processor(text, voice_preset=voice, max_length=48).to(self.model.device)
        torch.manual_seed(seed)
        return self.model.generate(**asked)[0].cpu().numpy()

    def sound(self, job: SpeechJob) -> Any:
        samples, _ = soundfile.read(
            self.folder / audio_file_name(job.id, job.format), dtype="int16"
        )
        return samples


def open_speech_harness(
    folder: Path,
    *,
    sampled: bool,
    tokens: int = 24,
    device: DeviceKind = "cpu",
    dtype: str | None = None,
    max_batch: int | None = None,
) -> SpeechHarness:
    repository = make(folder / "bark", sampled=sampled, tokens=tokens)
    engine = SpeechEngine()
    spec = Load(
        model="bark",
        engine="speech",
        path=str(repository),
        threads=1,
        device=device,
        dtype=dtype,
        max_batch=max_batch,
    )
    engine.load(spec, lambda _: None)
    model = BarkModel.from_pretrained(repository, dtype=torch.float32, use_safetensors=True)
    model = model.eval().to(device)
    (folder / "out").mkdir()
    return SpeechHarness(folder / "out", engine, model, AutoProcessor.from_pretrained(repository))
