"""Writes models with random weights, in a process that leaves the card empty behind it.

    python -m benchmarks.gpu.model_files DEVICE FOLDER KIND:SHAPE...

KIND is text, image or speech; SHAPE one of ``benchmarks.random_llama``, ``random_pipeline`` or
``random_bark``. The last line of the output is a JSON object: KIND to path and seconds.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

_PATIENCE = 90.0
_CHUNK = 16 << 20
_QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}


@dataclass(frozen=True, slots=True)
class Made:
    """Holds a model's folder, and the seconds that drawing and writing its weights took."""

    path: Path
    seconds: float

    @property
    def files(self) -> list[Path]:
        return [path for path in sorted(self.path.rglob("*")) if path.is_file()]

    @property
    def size(self) -> int:
        """Return bytes of its files."""
        return sum(path.stat().st_size for path in self.files)


def make_files(device: str, folder: Path, shapes: dict[str, str]) -> dict[str, Made]:
    """Make models below ``folder``; ``shapes`` and the result are by kind.

    Raises CalledProcessError or TimeoutExpired.
    """
    command = [sys.executable, "-m", "benchmarks.gpu.model_files", device, str(folder)]
    command += [f"{kind}:{shape}" for kind, shape in shapes.items()]
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        timeout=_PATIENCE,
        env={**os.environ, **_QUIET},
    )
    found: dict[str, tuple[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return {kind: Made(Path(path), seconds) for kind, (path, seconds) in found.items()}


def read_seconds(paths: list[Path]) -> float:
    """Measure how fast files are read from the page cache; they are read twice."""
    buffer = bytearray(_CHUNK)
    seconds = 0.0
    for _ in range(2):
        began = time.perf_counter()
        for path in paths:
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
        seconds = time.perf_counter() - began
    return seconds


def _make(kind: str, folder: Path, shape: str, device: str) -> Path:
    if kind == "text":
        from benchmarks.random_llama import make_model

        return make_model(folder / f"random-llama-{shape}", shape, device)
    if kind == "image":
        from benchmarks.random_pipeline import make_pipeline

        return make_pipeline(folder, shape, device)
    from benchmarks.random_bark import make_bark

    return make_bark(folder, shape, device)


def main() -> None:
    device, folder, *wanted = sys.argv[1:]
    made = {}
    for each in wanted:
        kind, shape = each.split(":")
        began = time.perf_counter()
        path = _make(kind, Path(folder), shape, device)
        made[kind] = (str(path), time.perf_counter() - began)
    print(json.dumps(made))


if __name__ == "__main__":
    main()
