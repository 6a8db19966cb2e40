"""Headers of safetensors files that lie, each just over its limit, and true ones just under it."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from model_store import headers
from model_store.errors import BadFiles
from model_store.headers import read_header


def made(path: Path, entries: Any, data: int = 0, *, length: int | None = None) -> Path:
    raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    size = len(raw) if length is None else length
    path.write_bytes(struct.pack("<Q", size) + raw + bytes(data))
    return path


def tensor(dtype: str, shape: list[Any], *offsets: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("entries", "data"),
    [
        ({}, 0),
        ({"a": tensor("F32", [2, 2], 0, 16)}, 16),
        ({"a": tensor("F32", [], 0, 4)}, 4),
        ({"a": tensor("F16", [0, 7], 0, 0), "b": tensor("U8", [3], 0, 3)}, 3),
        ({"b": tensor("BF16", [1], 2, 4), "a": tensor("BF16", [1], 0, 2)}, 4),
        ({"a": tensor("F4", [3, 2], 0, 3)}, 3),
        ({"__metadata__": {"format": "pt"}, "a": tensor("I64", [1], 0, 8)}, 8),
        ({"a": tensor("U8", [1] * 64, 0, 1)}, 1),
    ],
)
def test_headers_that_are_true_are_read(tmp_path: Path, entries: Any, data: int) -> None:
    names = set(entries) - {"__metadata__"}
    assert set(read_header(made(tmp_path / "m.safetensors", entries, data))) == names


@pytest.mark.parametrize(
    ("entries", "data"),
    [
        ({"a": tensor("F32", [2, 2], 0, 16)}, 15),
        ({"a": tensor("F32", [2, 2], 0, 16)}, 17),
        ({"a": tensor("F32", [2, 2], 0, 15)}, 15),
        ({"a": tensor("F32", [2, 2], 1, 17)}, 17),
        ({"a": tensor("F4", [3], 0, 1)}, 1),
        ({"a": tensor("F33", [1], 0, 4)}, 4),
        ({"a": tensor("U8", [4], 0, 4), "b": tensor("U8", [4], 3, 7)}, 7),
        ({"a": tensor("U8", [4], 0, 4), "b": tensor("U8", [4], 5, 9)}, 9),
        ({"a": tensor("U8", [4], 4, 0)}, 4),
        ({"a": tensor("U8", [-1, -4], 0, 4)}, 4),
        ({"a": tensor("U8", [2**53 + 1, 0], 0, 0)}, 0),
        ({"a": tensor("U8", [1] * 65, 0, 1)}, 1),
        ({"a": tensor("U8", [1.0], 0, 1)}, 1),
        ({"a": tensor("U8", [True], 0, 1)}, 1),
        ({"a": tensor("U8", [1], 0, 1, 2)}, 1),
        ({"a": {"dtype": "U8"}}, 0),
        ({"__metadata__": {"format": 1}}, 0),
        ([], 0),
        (b"", 0),
        (b"{", 0),
        (b'{"\xff": 1}', 0),
        (b"[" * 100_000, 0),
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, entries: Any, data: int) -> None:
    with pytest.raises(BadFiles, match=r"^m\.safetensors is not a whole"):
        read_header(made(tmp_path / "m.safetensors", entries, data))


def test_header_length_is_believed_up_to_the_file_and_the_cap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.safetensors"
    read_header(made(path, b"{}"))
    for length in (3, 2**32, 2**63, 2**64 - 1):
        with pytest.raises(BadFiles):
            read_header(made(path, b"{}", length=length))
    monkeypatch.setattr(headers, "MOST_HEADER_BYTES", 10)
    read_header(made(path, b"{}".ljust(10)))
    with pytest.raises(BadFiles):
        read_header(made(path, b"{}".ljust(11)))


@pytest.mark.parametrize("size", range(8))
def test_header_in_a_file_too_short_for_it_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(bytes(size))
    with pytest.raises(BadFiles):
        read_header(path)
