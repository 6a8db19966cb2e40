"""Runs a transcription engine with a tiny Whisper beside the library's own model."""

from collections.abc import Iterator
from concurrent.futures import wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from tests.support import audio
from tests.support.engine_runs import run_to_end
from tests.support.models import whisper
from workers.engines.transcription.engine import TranscriptionEngine
from workers.protocol import DeviceKind, Event, Load, Segment, TranscriptionDone, TranscriptionJob

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass
class TranscriptionHarness:
    folder: Path
    engine: TranscriptionEngine
    model: Any
    processor: Any
    thresholds: dict[str, float]
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(10_000)))

    def job(self, samples: Any, **fields: Any) -> TranscriptionJob:
        number = next(self.numbers)
        path = audio.write(self.folder / f"{number}.wav", samples)
        fields = {"id": f"job{number}", "max_seconds": 1000.0, **fields}
        return TranscriptionJob(path=str(path), **fields)

    def submit(self, *jobs: TranscriptionJob) -> None:
        """Submit all jobs with decoded audio, so that they begin together."""
        prepared = [self.engine.prepare(job) for job in jobs]
        wait([each.recording for each in prepared])
        for each in prepared:
            self.engine.submit(each)

    def run(self, *jobs: TranscriptionJob) -> list[Event]:
        """Run jobs, and those that run already, to their ends."""
        self.submit(*jobs)
        return run_to_end(self.engine)

    def transcribe(self, samples: Any, **fields: Any) -> TranscriptionDone:
        final = self.run(self.job(samples, **fields))[-1]
        assert isinstance(final, TranscriptionDone)
        return final

    def library(self, samples: Any, **options: Any) -> Any:
        """Return the library's generate() of a file, with the same thresholds."""
        longer = len(samples) > 30 * audio.RATE
        whole = {"truncation": False, "padding": "longest"} if longer else {}
        read = self.processor(
            samples,
            sampling_rate=audio.RATE,
            return_tensors="pt",
            return_attention_mask=True,
            **whole,
        )
        torch.manual_seed(0)
        options = {"task": "transcribe", "return_timestamps": True, **options}
        device = self.model.device
        return self.model.generate(
            read.input_features.to(device),
            attention_mask=read.attention_mask.to(device),
            return_segments=True,
            temperature=TEMPERATURES,
            **self.thresholds,
            **options,
        )

    def segments(self, samples: Any, **options: Any) -> list[dict[str, Any]]:
        """Return the library's segments that have text, and begin within the file."""
        length = len(samples) / audio.RATE
        found = self.library(samples, **options)["segments"][0]
        return [
            {**each, "tokens": tuple(each["tokens"].tolist())}
            for each in found
            if each["start"] < length and any(each["tokens"] < whisper.END)
        ]

    def one_go(self, samples: Any, **options: Any) -> tuple[int, ...]:
        """Return the library's tokens of a single window without timestamps."""
        options = {"force_unique_generate_call": True, "return_timestamps": False, **options}
        written = self.library(samples, return_dict_in_generate=True, **options).sequences[0]
        start = written.tolist().index(whisper.IDS["<|notimestamps|>"]) + 1
        found: list[int] = written[start:].tolist()
        return tuple(found[:-1] if found[-1] == whisper.END else found)

    def expected(self, samples: Any, **options: Any) -> list[tuple[int, ...]]:
        return [each["tokens"] for each in self.segments(samples, **options)]


def tokens_of(segments: tuple[Segment, ...]) -> list[tuple[int, ...]]:
    return [segment.tokens for segment in segments]


def check_segments(harness: TranscriptionHarness, sound: Any) -> None:
    """Check that tokens and times of a file's segments are those of the library's generate()."""
    expected = harness.segments(sound)
    heard = harness.transcribe(sound, timestamps="segment")
    assert len(expected) >= 1
    assert tokens_of(heard.segments) == [each["tokens"] for each in expected]
    length = len(sound) / audio.RATE
    assert heard.duration == length
    for segment, found in zip(heard.segments, expected, strict=True):
        assert segment.start == pytest.approx(float(found["start"]))
        assert segment.end == pytest.approx(min(length, float(found["end"])))


def check_together(harness: TranscriptionHarness) -> None:
    """Check that files which run together have the tokens that each of them has alone."""
    recordings = [audio.melody(length, seed) for seed, length in enumerate((3, 40, 9, 62, 5, 31))]
    jobs = [
        harness.job(
            sound, timestamps=("segment", "none")[number % 2], prompt=(None, "abc")[number % 3 == 0]
        )
        for number, sound in enumerate(recordings)
    ]
    alone = {}
    for job in jobs:
        final = harness.run(job)[-1]
        assert isinstance(final, TranscriptionDone)
        alone[job.id] = final
    together = {e.id: e for e in harness.run(*jobs) if isinstance(e, TranscriptionDone)}
    assert together.keys() == alone.keys()
    for name, final in alone.items():
        assert tokens_of(together[name].segments) == tokens_of(final.segments)
        assert together[name].text == final.text


def open_transcription_harness(
    folder: Path,
    *,
    several: bool = True,
    device: DeviceKind = "cpu",
    dtype: str | None = None,
    **thresholds: float,
) -> TranscriptionHarness:
    """Open a harness. ``thresholds``: of an attempt that is good enough; without any, all are."""
    thresholds = {**whisper.LENIENT, **thresholds}
    repository = whisper.make(folder / "whisper", several=several, **thresholds)
    engine = TranscriptionEngine()
    spec = Load(
        model="whisper",
        engine="transcription",
        path=str(repository),
        threads=1,
        device=device,
        dtype=dtype,
    )
    engine.load(spec, lambda _: None)
    model = WhisperForConditionalGeneration.from_pretrained(repository, dtype=torch.float32)
    processor = WhisperProcessor.from_pretrained(repository)
    (folder / "in").mkdir()
    return TranscriptionHarness(
        folder / "in", engine, model.eval().to(device), processor, thresholds
    )
