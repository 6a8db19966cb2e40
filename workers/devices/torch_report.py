"""Asks torch, in a fresh process, what it has code for, and which cards it finds without NVML."""

from collections.abc import Callable
from typing import Annotated

import msgspec

from workers.devices import child

_MODULE = "workers.engines.torch_report"
_MOST = 1024

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class TorchCard(msgspec.Struct, frozen=True):
    """Describes a card as torch sees it."""

    uuid: Name
    name: Name
    memory_bytes: Annotated[int, msgspec.Meta(gt=0, le=2**50)]
    capability: tuple[int, int]

    @property
    def pin(self) -> str:
        """Return what CUDA_VISIBLE_DEVICES calls it."""
        return self.uuid if self.uuid.startswith(("GPU-", "MIG-")) else f"GPU-{self.uuid}"


class TorchReport(msgspec.Struct, frozen=True):
    """Holds what torch says of itself and of the cards."""

    architectures: Annotated[tuple[Name, ...], msgspec.Meta(max_length=_MOST)]
    cards: Annotated[tuple[TorchCard, ...], msgspec.Meta(max_length=_MOST)] = ()


#: Takes whether cards are asked for, too, which wakes them; blocks; returns None without an answer.
AskTorch = Callable[[bool], TorchReport | None]


def ask_torch(cards: bool, seconds: float = 120.0) -> TorchReport | None:
    """Ask torch in a process; None if it has not answered within so many seconds, its import
    included. Blocks. ``cards``: ask which cards there are, too, and not only what torch has code
    for."""
    try:
        output, _ = child.run(_MODULE, seconds, None if cards else "")
        return msgspec.json.decode(output, type=TorchReport)
    except (child.NotStarted, child.TooLate, msgspec.DecodeError):
        return None
