"""A worker loads no model on other cards than it was given."""

from types import SimpleNamespace

import pytest
import torch

from workers.engines import torch_env
from workers.engines.base import Refused
from workers.protocol import Load

FIRST, SECOND = (f"{n:08d}-1111-2222-3333-444444444444" for n in (1, 2))


def load(visible: str) -> Load:
    return Load(
        model="m", engine="text", path="/m", device="cuda", visible_devices=visible, dtype=None
    )


def sees(monkeypatch: pytest.MonkeyPatch, *uuids: str | None) -> None:
    """Let torch see cards of these UUIDs; None: of one that it does not tell."""
    told = [SimpleNamespace(**({"uuid": uuid} if uuid else {})) for uuid in uuids]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(told))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: told[index])


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (f"GPU-{FIRST}", [FIRST]),
        (f"GPU-{SECOND},GPU-{FIRST}", [SECOND, FIRST]),
        (f"GPU-{FIRST}", [None]),
        ("MIG-1", [FIRST]),
        ("0", [SECOND]),
    ],
)
def test_cards_that_were_chosen_are_used(
    visible: str, seen: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sees(monkeypatch, *seen)
    assert torch_env.device(load(visible)).type == "cuda"


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (f"GPU-{FIRST}", [SECOND]),
        (f"GPU-{FIRST}", [FIRST, SECOND]),
        (f"GPU-{FIRST},GPU-{SECOND}", [SECOND, FIRST]),
        (f"GPU-{FIRST},GPU-{SECOND}", [None]),
    ],
)
def test_cards_that_are_not_those_chosen_end_the_load(
    visible: str, seen: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sees(monkeypatch, *seen)
    with pytest.raises(Refused, match=f"was given the cards GPU-{FIRST}") as refused:
        torch_env.device(load(visible))
    assert refused.value.code == "MODEL_LOAD_FAILED"
