"""Compares a Whisper in the transcription engine with transformers' pipeline: speed, wrong words.

    python -m benchmarks.transcription MODEL [--sounds DIR] [--faster-whisper DIR] [--threads 1]

``MODEL`` is the folder of a Whisper that was trained; ``--faster-whisper`` has one in the format of
CTranslate2, for which faster-whisper must be installed. ``--sounds`` holds ``name.wav`` beside
``name.txt``; without it the sentences below are spoken by eSpeak NG (``pip install
espeakng-loader``), two in a file, all of them in another. Each side hears every file once to warm
up, then in rounds, one after another.
"""

import argparse
import ctypes
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from transformers import pipeline

from benchmarks.machine import describe, load_average
from workers.engines.transcription.audio import Bounds, read
from workers.engines.transcription.engine import TranscriptionEngine
from workers.protocol import Load, TranscriptionDone, TranscriptionJob

_SENTENCES = (
    "The birch canoe slid on the smooth planks.",
    "Glue the sheet to the dark blue background.",
    "It is easy to tell the depth of a well.",
    "These days a chicken leg is a rare dish.",
    "Rice is often served in round bowls.",
    "The juice of lemons makes fine punch.",
    "The box was thrown beside the parked truck.",
    "The hogs were fed chopped corn and garbage.",
    "Four hours of steady work faced us.",
    "A large size in stockings is hard to sell.",
    "The boy was there when the sun rose.",
    "A rod is used to catch pink salmon.",
    "The source of the huge river is the clear spring.",
    "Kick the ball straight and follow through.",
    "Help the woman get back to her feet.",
    "A pot of tea helps to pass the evening.",
)
RATE = 16_000
_SYNCHRONOUS, _UTF8 = 2, 1  #: constants of eSpeak NG

_ADVISED = {
    "temperature": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    "compression_ratio_threshold": 1.35,
    "logprob_threshold": -1.0,
    "no_speech_threshold": 0.6,
}

Hear = Callable[[Path], str]


def speak(folder: Path) -> None:
    """Write the sentences as sounds, with their texts beside them."""
    loader: Any = import_module("espeakng_loader")
    espeak = ctypes.CDLL(loader.get_library_path())
    rate = espeak.espeak_Initialize(_SYNCHRONOUS, 0, loader.get_data_path().encode(), 0)
    pieces: list[bytes] = []

    def take(samples: Any, count: int, _events: Any) -> int:
        if samples and count:
            pieces.append(ctypes.string_at(samples, 2 * count))
        return 0

    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    callback = kind(take)
    espeak.espeak_SetSynthCallback(callback)
    pairs = [" ".join(_SENTENCES[at : at + 2]) for at in range(0, len(_SENTENCES), 2)]
    named = {f"pair{at}": each for at, each in enumerate(pairs)}
    for name, text in {**named, "all": " ".join(pairs)}.items():
        pieces.clear()
        raw = text.encode()
        espeak.espeak_Synth(raw, len(raw) + 1, 0, 0, 0, _UTF8, None, None)
        espeak.espeak_Synchronize()
        soundfile.write(folder / f"{name}.wav", np.frombuffer(b"".join(pieces), "<i2"), rate)
        (folder / f"{name}.txt").write_text(text)


def words(text: str) -> list[str]:
    """Return the words of a text without punctuation and case."""
    return "".join(char if char.isalnum() else " " for char in text.lower()).split()


def distance(heard: Sequence[str], said: Sequence[str]) -> int:
    """Count the words to replace, leave out or add."""
    row = list(range(len(said) + 1))
    for number, word in enumerate(heard, 1):
        before, row[0] = row[0], number
        for at, other in enumerate(said, 1):
            before, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, before + (word != other))
    return row[-1]


def ours(model: Path, threads: int) -> Hear:
    engine = TranscriptionEngine()
    load = Load(model="w", engine="transcription", path=str(model), threads=threads)
    engine.load(load, lambda _part: None)

    def hear(path: Path) -> str:
        job = TranscriptionJob(
            id="j", path=str(path), max_seconds=3600, voice_activity=True, stream=False
        )
        engine.submit(engine.prepare(job))
        while engine.in_flight:
            for event in engine.step():
                if isinstance(event, TranscriptionDone):
                    return event.text
        raise RuntimeError(f"{path.name} was not heard")

    return hear


def library(model: Path) -> Hear:
    """Return the library's pipeline, with the thresholds that its authors advise."""
    found: Any = pipeline(
        "automatic-speech-recognition", model=str(model), device="cpu", dtype=torch.float32
    )

    def hear(path: Path) -> str:
        blocks = read(path, RATE, Bounds(3600, 8, 768_000), block=RATE)
        sound = {"raw": np.concatenate([*blocks]), "sampling_rate": RATE}
        return str(found(sound, return_timestamps=True, generate_kwargs=_ADVISED)["text"])

    return hear


def faster_whisper(model: Path, threads: int) -> Hear:
    package: Any = import_module("faster_whisper")
    found = package.WhisperModel(
        str(model), device="cpu", compute_type="float32", cpu_threads=threads, num_workers=1
    )

    def hear(path: Path) -> str:
        segments, _ = found.transcribe(str(path), beam_size=1)
        return "".join(segment.text for segment in segments)

    return hear


def measure(name: str, hear: Hear, sounds: Sequence[Path], rounds: int) -> None:
    """Print a row: seconds of sound in a second, and the share of words that are wrong."""
    heard = [words(hear(path)) for path in sounds]
    said = [words(path.with_suffix(".txt").read_text()) for path in sounds]
    wrong = sum(map(distance, heard, said))
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        for path in sounds:
            hear(path)
        took.append(time.perf_counter() - began)
    seconds = sum(soundfile.info(path).duration for path in sounds)
    rate = wrong / sum(map(len, said))
    print(f"| {name} | {seconds / statistics.median(took):.1f} | {100 * rate:.1f} % |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--sounds", type=Path)
    parser.add_argument("--faster-whisper", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    before = load_average()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as made:
        folder = options.sounds or Path(made)
        if options.sounds is None:
            speak(folder)
        sounds = sorted(path for path in folder.glob("*.wav") if path.with_suffix(".txt").exists())
        print("| | seconds of sound in a second | words wrong |\n|---|---|---|")
        measure("engine", ours(options.model, options.threads), sounds, options.rounds)
        measure("transformers' pipeline", library(options.model), sounds, options.rounds)
        if options.faster_whisper is not None:
            hear = faster_whisper(options.faster_whisper, options.threads)
            measure("faster-whisper", hear, sounds, options.rounds)
    print(f"\n{describe(before)}, {options.threads} thread(s)")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
