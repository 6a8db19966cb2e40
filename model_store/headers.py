"""Reads the headers of safetensors files, without torch and without trust.

A file is an 8-byte little-endian length, so many bytes of JSON, then the tensors' bytes, which
the header's offsets must cover without gap or overlap.
Source: https://github.com/huggingface/safetensors#format
"""

import math
import struct
from pathlib import Path
from typing import Annotated

import msgspec

from model_store.errors import BadFiles

LENGTH_BYTES = 8  #: of the number before a header
_LENGTH = struct.Struct("<Q")
MOST_HEADER_BYTES = 100_000_000
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16,
    "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
}  # fmt: skip
DTYPES = {
    "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "I8": "int8", "U8": "uint8",
}  # fmt: skip

_Size = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Shape = Annotated[list[_Size], msgspec.Meta(max_length=64)]  #: a product of more takes for ever


class Tensor(msgspec.Struct, frozen=True):
    """Holds one tensor's entry: element type, dimensions, first byte and the one after the last."""

    dtype: str
    shape: _Shape
    data_offsets: tuple[_Size, _Size]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.data_offsets[1] - self.data_offsets[0]


def read_header(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file. Raises BadFiles when the header lies."""
    raw, data_bytes = _read(path)
    tensors = _decode(path, raw)
    _check(path, tensors, data_bytes)
    return tensors


def header_end(start: bytes) -> int | None:
    """Return where a file's header ends, told by its first bytes; None if it can be no header."""
    if len(start) < LENGTH_BYTES:
        return None
    length = int(_LENGTH.unpack_from(start)[0])
    return LENGTH_BYTES + length if length <= MOST_HEADER_BYTES else None


def decode_header(start: bytes, path: str) -> dict[str, Tensor]:
    """Return the tensors of a header that came without what follows it.

    ``start`` are the bytes up to ``header_end``. Raises BadFiles.
    """
    return _decode(Path(path), start[LENGTH_BYTES:])


def read_metadata(path: Path) -> dict[str, str]:
    """Return what a safetensors file tells beside its tensors. Raises BadFiles."""
    raw, _ = _read(path)
    try:
        entries = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        metadata = bytes(entries.get("__metadata__", b"{}"))
        return msgspec.json.decode(metadata, type=dict[str, str])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _lies(path, "its header does not read") from error


def _read(path: Path) -> tuple[bytes, int]:
    """Return the header and how many bytes follow it."""
    if not path.is_file():
        raise BadFiles(f"{path.name} is missing, or not a plain file.")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_LENGTH.size)
        length = _LENGTH.unpack(start)[0] if len(start) == _LENGTH.size else size
        if length > min(MOST_HEADER_BYTES, size - _LENGTH.size):
            raise _lies(path, "its header is longer than the file, or than any header may be")
        return file.read(length), size - _LENGTH.size - length


def _decode(path: Path, raw: bytes) -> dict[str, Tensor]:
    try:
        entries = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        metadata = bytes(entries.pop("__metadata__", b"{}"))
        msgspec.json.decode(metadata, type=dict[str, str])
        if _tensors_in(raw) - _tensors_in(metadata) != len(entries):
            raise _lies(path, "its header names something twice, or a tensor's place not at all")
        return {name: msgspec.json.decode(entry, type=Tensor) for name, entry in entries.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _lies(path, "its header does not read") from error


def _tensors_in(raw: bytes) -> int:
    """Count the tensors by a field that each has once: of two alike the decoder keeps the last,
    and the library may keep the other."""
    return raw.count(b'"data_offsets"')


def _check(path: Path, tensors: dict[str, Tensor], data_bytes: int) -> None:
    at = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        begin, end = tensor.data_offsets
        if tensor.dtype not in _BITS:
            raise _lies(path, f"'{name[:80]}' is of an unknown type")
        if begin != at or end < begin:
            raise _lies(path, f"the bytes of '{name[:80]}' do not follow those before it")
        if tensor.elements * _BITS[tensor.dtype] != tensor.nbytes * 8:
            raise _lies(path, f"the shape of '{name[:80]}' does not fit its bytes")
        at = end
    if at != data_bytes:
        raise _lies(path, "its tensors do not cover it")


def _lies(path: Path, why: str) -> BadFiles:
    return BadFiles(f"{path.name} is not a whole safetensors file: {why}.")
