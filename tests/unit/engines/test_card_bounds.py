"""An allocator takes a bounded part of a card and gives it back; torch's answers are stand-ins."""

import pytest
import torch

from workers.engines import torch_env

GIB = 1 << 30
WSL = "5.15.153.1-microsoft-standard-WSL2"


@pytest.mark.parametrize(("kernel", "bounds"), [(WSL, [(0.75, 0), (0.5, 1)]), ("6.1.0-18", [])])
def test_memory_under_wsl_is_bounded_by_what_is_free(
    monkeypatch: pytest.MonkeyPatch, kernel: str, bounds: list[tuple[float, int]]
) -> None:
    """Check the bound beyond which the driver would silently use slow system memory."""
    told: list[tuple[float, int]] = []
    free = [18 * GIB, 6 * GIB]
    total = [24 * GIB, 12 * GIB]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda card: (free[card], total[card]))
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda *bound: told.append(bound)
    )
    torch_env._stay_on_the_cards(kernel)
    assert told == bounds


@pytest.mark.parametrize(("unused", "given_back"), [(2 * GIB, 1), (GIB // 2, 0)])
def test_memory_that_lies_unused_in_pieces_is_given_back(
    monkeypatch: pytest.MonkeyPatch, unused: int, given_back: int
) -> None:
    calls = 0

    def empty_cache() -> None:
        nonlocal calls
        calls += 1

    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 8 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 8 * GIB - unused)
    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    torch_env.release_unused("cpu")
    assert calls == 0
    torch_env.release_unused("cuda")
    assert calls == given_back
