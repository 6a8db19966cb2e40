"""Makes sounds and writes them as audio files."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

RATE = 16_000


def melody(seconds: float, seed: int = 0) -> Any:
    """Tones that glide, come and go over a little noise; as a 16-bit file holds them."""
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    voices = zip(
        random.uniform(0.05, 0.2, 4),
        random.uniform(100, 3000, 4),
        random.uniform(0.1, 2, 4),
        strict=True,
    )
    tones = sum(
        loudness * np.sin(2 * np.pi * pitch * time * (1 + 0.1 * np.sin(time * glide)))
        for loudness, pitch, glide in voices
    )
    noisy = (tones + random.standard_normal(len(time)) * 0.02) * (0.5 + 0.5 * np.sin(time * 0.7))
    return (np.clip(noisy, -1, 1) * 32_767).astype(np.int16).astype(np.float32) / 32_768


def write(path: Path, samples: Any, rate: int = RATE, **fields: Any) -> Path:
    soundfile.write(path, samples, rate, **fields)
    return path


def wav(*, channels: int = 1, rate: int = RATE, data: bytes = b"\0" * 64_000) -> bytes:
    """Return a file whose header says so, whatever it holds."""
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * 2 * channels % 2**32, 2 * channels, 16)
    body = (
        b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", len(data)) + data
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def voice(seconds: float = 2.0, kind: str = "WAV", rate: int = 16_000) -> bytes:
    """Return a file of a sound that rises and falls as voices do."""
    out = io.BytesIO()
    times = np.arange(int(seconds * rate))
    wave = 0.3 * np.sin(times * 0.2) * np.sin(times * 10 / rate)
    soundfile.write(out, wave, rate, format=kind)
    return out.getvalue()


def an_hour() -> bytes:
    """Return a small file that holds more than an hour."""
    out = io.BytesIO()
    soundfile.write(out, np.zeros(3601 * 4000, np.int16), 4000, format="FLAC")
    return out.getvalue()
