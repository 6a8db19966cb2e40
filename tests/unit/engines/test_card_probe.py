"""The answer of a process that probes cards is read by card."""

from typing import Any

import pytest
import torch

from workers.devices.probe import read
from workers.engines.card_probe import failure


def test_probe_is_read_by_card() -> None:
    assert read(b'[null, "CUDA unknown error"]', 0, ["0", "1"]) == {"1": "CUDA unknown error"}
    assert "code -6" in read(b"", -6, ["0"])["0"]


@pytest.mark.parametrize(
    ("error", "wrong"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB."), None),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling x"), None),
        (RuntimeError("CUDA error: unknown error\nmore"), "CUDA error: unknown error"),
        (None, None),
    ],
)
def test_probe_of_a_full_card_finds_no_fault(
    error: Exception | None, wrong: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ones(*_: object, **__: object) -> Any:
        assert error is not None
        raise error

    if error is not None:
        monkeypatch.setattr(torch, "ones", ones)
    assert failure(torch.device("cpu")) == wrong
