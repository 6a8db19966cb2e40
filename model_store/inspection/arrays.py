"""Checks the files of arrays beside a model, such as voices: plain numbers, no Python objects.

A file is ``\\x93NUMPY``, a version of two bytes, a little-endian length of two bytes (version 1) or
four, so many bytes of a dictionary as Python writes it, then the numbers.
Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import ast
import re
import struct
from collections.abc import Iterable
from pathlib import Path

from model_store.errors import BadFiles
from model_store.inspection.files import open_files

_MAGIC = b"\x93NUMPY"
_START = 12
_LONGEST_HEADER = 10_000
_NUMBERS = re.compile(r"[<>|=]?[biufc]\d{1,2}", re.ASCII)


def check_arrays(folder: Path, paths: Iterable[str]) -> None:
    """Raise BadFiles for a .npy file that is none, or that holds pickled objects."""
    for path in open_files(folder, [path for path in paths if path.endswith(".npy")]):
        with (folder / path).open("rb") as file:
            raw = file.read(_START + _LONGEST_HEADER)
        try:
            dtype = _dtype(raw)
        except (ValueError, SyntaxError, RecursionError, MemoryError, struct.error) as error:
            raise BadFiles(f"{path[:120]} is not an array.") from error
        if not isinstance(dtype, str) or not _NUMBERS.fullmatch(dtype):
            raise BadFiles(f"{path[:120]} holds more than numbers, such as pickled objects.")


def _dtype(raw: bytes) -> object:
    """Return the element type of an array, from its header. Raises ValueError and its kin."""
    if not raw.startswith(_MAGIC) or len(raw) < _START:
        raise ValueError
    begin, form = (10, "<H") if raw[len(_MAGIC)] == 1 else (12, "<I")
    (length,) = struct.unpack(form, raw[8:begin])
    header = raw[begin : begin + length]
    if length > _LONGEST_HEADER or len(header) < length:
        raise ValueError
    fields = ast.literal_eval(header.decode("latin-1").strip())
    return fields.get("descr") if isinstance(fields, dict) else None
