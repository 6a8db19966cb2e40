"""Finds out whether copies between cards arrive as they were sent, before a model is split there.

Where the driver believes that cards can reach each other and the machine's IOMMU or bridges do not
let them, what arrives is wrong and nothing raises: a split model then answers nonsense.
"""

from collections.abc import Callable, Sequence
from itertools import permutations

import torch

from workers.engines.base import Refused

_NUMBERS = 1 << 20  #: of 8 bytes: more than a page, less than a moment


def check_copies(
    cards: Sequence[torch.device],
    copy: Callable[[torch.Tensor, torch.device], torch.Tensor] = torch.Tensor.to,
) -> None:
    """Copy a pattern between each two cards, both ways. Raises Refused if one arrives wrong."""
    pattern = torch.arange(_NUMBERS).mul_(0x9E3779B97F4A7C15 - (1 << 64))
    for source, target in permutations(cards, 2):
        sent = pattern.to(source)
        arrived = copy(sent, target)
        if not torch.equal(arrived.cpu(), pattern):
            raise Refused(
                "MODEL_LOAD_FAILED",
                f"What card {source.index} sends to card {target.index} arrives wrong, so the "
                "model is not split over them. Turn off the IOMMU (or ACS) in the firmware, or use "
                "a driver that does not offer copies between these cards; models that one card "
                "holds are not concerned.",
            )
