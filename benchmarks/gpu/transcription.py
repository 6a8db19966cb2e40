"""Measures Whisper large-v3's shape on the card: one file and eight, by token,
beside the library."""

import statistics
import tempfile
import time
from concurrent.futures import wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from benchmarks.gpu.recorder import Recorder
from benchmarks.gpu.torch_setup import prepare_torch
from benchmarks.random_whisper import LENIENT, POSITIONS, make_whisper
from workers.engines.torch_env import release_cached
from workers.engines.transcription.engine import TranscriptionEngine
from workers.protocol import Failed, Load, TranscriptionDone, TranscriptionJob

_RATE = 16_000
_MIB = 1 << 20
_SHAPES = {"real": "large-v3", "tiny": "tiny"}
_FILES = {"real": 8, "tiny": 2}  #: at once
_SECONDS = 60.0  #: of each file: two windows


@dataclass(slots=True)
class _Timing:
    """Holds the seconds that a run of the engine took."""

    seconds: float = 0.0
    sound: float = 0.0  #: seconds of sound that were read
    #: of each step, by the rows of all passes
    tokens: dict[int, list[float]] = field(default_factory=dict)
    windows: list[tuple[int, float]] = field(
        default_factory=list
    )  #: encoded together, and how long

    def rate(self) -> float:
        return self.sound / self.seconds


def measure(record: Recorder) -> None:
    """Measure the engine with one file and several, the library with one, and cuDNN's attention."""
    prepare_torch(record)
    shape = _SHAPES[record.shape]
    with record.seconds(f"Whisper {shape}: random weights made and written"):
        folder = make_whisper(record.folder, shape, record.device)
    release_cached(record.device)
    with tempfile.TemporaryDirectory() as out:
        files = [_write_sound(Path(out), seed) for seed in range(_FILES[record.shape])]
        with record.seconds(f"Whisper {shape}: loaded by the engine"):
            engine = _load(record, folder, len(files))
        own = POSITIONS[shape] - 4
        record.figure(
            "Tokens of a window",
            float(own),
            "",
            note="random weights never end one; the model's own bound is 444",
        )
        _transcribe(record, engine, files[:1])  # a warm-up
        rate = _measure_engine(record, engine, files)
        _measure_library(record, folder, files[0], rate)
        _measure_cudnn(record, engine, files[:1])
        engine.close()


def _measure_engine(record: Recorder, engine: TranscriptionEngine, files: list[Path]) -> float:
    """Record one file, then several; gives the seconds of sound a second of one file."""
    one = _transcribe(record, engine, files[:1])
    _record_run(record, "1 file", one, expected="")
    together = _transcribe(record, engine, files, decoded_first=True)
    _record_run(
        record, f"{len(files)} files at once, windows in step", together, expected="about 200"
    )
    apart = _transcribe(record, engine, files)
    record.figure(
        f"Whisper, {len(files)} files at once, as their sound is decoded",
        apart.rate(),
        "s of sound/s",
        note="files that are decoded first are in a pass of their own",
    )
    for rows, steps in sorted((one.tokens | together.tokens).items()):
        record.figure(
            f"Whisper, a token, batch {rows}",
            1000 * statistics.median(steps),
            "ms",
            expected="7-9 ms",
            note=f"median of {len(steps)}",
        )
    for run in (one, together):
        rows = max(rows for rows, _ in run.windows)
        spent = statistics.median(seconds for count, seconds in run.windows if count == rows)
        name = f"Whisper, the encoder, batch {rows}"
        record.figure(name, 1000 * spent / rows, "ms a window")
    return one.rate()


def _record_run(record: Recorder, name: str, run: _Timing, expected: str) -> None:
    record.figure(
        f"Whisper, {name}, engine",
        run.rate(),
        "s of sound/s",
        expected=expected,
        note=f"{run.sound:.0f} s of sound in {run.seconds:.2f} s, decoding the files included",
    )


def _measure_cudnn(record: Recorder, engine: TranscriptionEngine, files: list[Path]) -> None:
    """Record what a token takes where cuDNN may compute attention: in the first window, whose key
    lengths are all new to it, and in the second."""
    process = psutil.Process()
    before = process.memory_info().rss
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        steps = _transcribe(record, engine, files).tokens[1]
    finally:
        torch.backends.cuda.enable_cudnn_sdp(False)
    half = len(steps) // 2
    for name, part, expected in (
        ("first", steps[:half], "25-40 ms more on Hopper"),
        ("second", steps[half:], "no more than without it"),
    ):
        record.figure(
            f"Whisper, a token, batch 1, with cuDNN's attention, {name} window",
            1000 * statistics.median(part),
            "ms",
            expected=expected,
        )
    grown = (process.memory_info().rss - before) / _MIB
    record.figure("Host memory that cuDNN's plans take", grown, "MiB")


def _measure_library(record: Recorder, folder: Path, path: Path, engine_rate: float) -> None:
    """Record the library's own call for one file: the same windows, each of as many tokens."""
    dtype = torch.float16 if record.device == "cuda" else torch.float32
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    model = model.eval().to(record.device)
    for threshold in LENIENT:  # with any of them the library wants several temperatures
        setattr(model.generation_config, threshold, None)
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    record.synchronize()
    began = time.perf_counter()
    samples, _ = soundfile.read(path, dtype="float32")
    read = extractor(
        samples,
        sampling_rate=_RATE,
        return_tensors="pt",
        truncation=False,
        padding="longest",
        return_attention_mask=True,
    )
    found: Any = model.generate(
        input_features=read.input_features.to(record.device, dtype),
        attention_mask=read.attention_mask.to(record.device),
        language="en",
        task="transcribe",
        return_timestamps=True,
    )
    record.synchronize()
    seconds = time.perf_counter() - began
    record.figure(
        "Whisper, 1 file, library",
        _SECONDS / seconds,
        "s of sound/s",
        note=f"once; {found.shape[-1]} tokens; without cuDNN's attention, like the engine",
    )
    record.figure(
        "Whisper, 1 file, engine's speed over the library's",
        engine_rate * seconds / _SECONDS,
        "times",
    )


# ---- the engine ----------------------------------------------------------------------------------


def _load(record: Recorder, folder: Path, files: int) -> TranscriptionEngine:
    engine = TranscriptionEngine()
    engine.load(
        Load(
            model="bench",
            engine="transcription",
            path=str(folder),
            device=record.device,
            max_batch=files,
        ),
        lambda _part: None,
    )
    return engine


def _transcribe(
    record: Recorder, engine: TranscriptionEngine, files: list[Path], *, decoded_first: bool = False
) -> _Timing:
    """Have files transcribed at once. ``decoded_first``: their windows are begun together, since
    the sound of all of them has been decoded before the first is."""
    timing = _Timing()
    record.synchronize()
    began = time.perf_counter()
    prepared = []
    for number, path in enumerate(files):
        job = TranscriptionJob(id=f"bench-{number}", path=str(path), language="en", max_seconds=600)
        prepared.append(engine.prepare(job))
    if decoded_first:
        wait([each.recording for each in prepared])
    for each in prepared:
        engine.submit(each)
    while engine.in_flight:
        _step(record, engine, timing)
    timing.seconds = time.perf_counter() - began
    return timing


def _step(record: Recorder, engine: TranscriptionEngine, timing: _Timing) -> None:
    """Run one step of the engine: it encodes the windows of a pass, or makes a
    token of each row."""
    held = engine.books()
    began = time.perf_counter()
    events = engine.step()
    record.synchronize()
    spent = time.perf_counter() - began
    for event in events:
        assert not isinstance(event, Failed), event
        if isinstance(event, TranscriptionDone):
            timing.sound += event.duration
    begun = engine.books()["rows"] - held["rows"]
    if begun > 0:
        timing.windows.append((begun, spent))
    elif held["rows"]:
        timing.tokens.setdefault(held["rows"], []).append(spent)


def _write_sound(folder: Path, seed: int) -> Path:
    """Write a file of noise and tones that glide, which is no silence anywhere."""
    random = np.random.default_rng(seed)
    moments = np.arange(int(_SECONDS * _RATE)) / _RATE
    samples = 0.05 * random.standard_normal(len(moments))
    for pitch in random.uniform(100, 3000, 4):
        samples += 0.1 * np.sin(2 * np.pi * pitch * moments * (1 + 0.05 * np.sin(moments)))
    path = folder / f"sound-{seed}.wav"
    soundfile.write(path, samples, _RATE)
    return path
