"""Turns one file of pickled tensors into safetensors, in a process of its own.

    python -I -m workers.unpickle SOURCE TARGET MODE

Only tensors are read (``weights_only``), under limits of memory, time and file size, by a process
that can open the one file, and write into the other's folder; MODE is ``workers.confine``. What is
wrong comes as one line on stdout and exit code 1; nothing of the file's own text is repeated.
"""

import pickle
import resource
import sys
from pathlib import Path
from typing import Any, cast

from workers.confinement import NotConfined, confine_reader
from workers.protocol import ConfineMode

_CPU_SECONDS = 1800
#: Beside the weights, of address space: the libraries' own, and what they map without using it.
_SPACE_BYTES = 16 << 30


def main(source: Path, target: Path, mode: ConfineMode) -> int:
    _limit(source.stat().st_size)
    try:
        confine_reader(str(source), str(target.parent), mode)
        _convert(source, target)
    except (_Unfit, NotConfined) as error:
        print(error)  # noqa: T201  the answer
        return 1
    return 0


class _Unfit(Exception):
    """Says why the file is not taken."""


def _limit(size: int) -> None:
    limits = {
        resource.RLIMIT_AS: 3 * size + _SPACE_BYTES,
        resource.RLIMIT_CPU: _CPU_SECONDS,
        resource.RLIMIT_FSIZE: 2 * size + (1 << 20),
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        _, most = resource.getrlimit(limit)
        if most == resource.RLIM_INFINITY or value < most:
            resource.setrlimit(limit, (value, value))


def _convert(source: Path, target: Path) -> None:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    found = _read(torch, source)
    if not isinstance(found, dict) or not found:
        raise _Unfit("it holds no table of tensors")
    tensors = {}
    for name, tensor in found.items():
        plain = isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided
        if not isinstance(name, str) or not plain:
            raise _Unfit("it holds more than tensors with names")
        # A copy each: one memory under two names is what safetensors does not write.
        tensors[name] = tensor.detach().clone().contiguous()
    try:
        save_file(tensors, target, metadata={"format": "pt"})
    except (SafetensorError, ValueError, RuntimeError, OSError) as error:
        raise _Unfit("its tensors cannot be written") from error


def _read(torch: Any, source: Path) -> Any:
    """Read tensors, mapped where the file's format allows that."""
    try:
        with source.open("rb") as file:
            mapped = bool(torch.serialization._is_zipfile(file))
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise _Unfit("it holds more than tensors, which could run code") from error
    except MemoryError as error:
        raise _Unfit("it would take more memory than its size explains") from error
    except Exception as error:  # a hostile file may raise anything, and all of it means no
        raise _Unfit("it cannot be read") from error


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), cast("ConfineMode", sys.argv[3])))
