"""Chooses how many CPU threads compute a model, by the size of its weights.

All threads meet after each operation. In a model of a few megabytes an operation is shorter than
the meeting: one thread is then as quick as two on a quiet machine, and far quicker on a busy one,
where one of them is always missing.
"""

from collections.abc import Mapping
from pathlib import Path

from workers.protocol import Load

#: Below it a model's weights lie in the caches of one core, or nearly.
_TINY_BYTES = 16 * 1024 * 1024
#: By these an operator sets the threads of the libraries.
_OPERATORS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def threads_for(spec: Load, environ: Mapping[str, str]) -> int | None:
    """Return the setting's number, 1 for a tiny model on a CPU, else None: the libraries' own."""
    if spec.threads is not None:
        return spec.threads
    if spec.device == "cuda" or any(name in environ for name in _OPERATORS):
        return None
    return 1 if 0 < _weight_bytes(Path(spec.path)) < _TINY_BYTES else None


def _weight_bytes(folder: Path) -> int:
    """Return the size of a model's weights; those of a pipeline lie in folders by part."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors") if path.is_file())
