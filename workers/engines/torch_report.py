"""Tells in a process of its own what only torch knows.

    python -m workers.engines.torch_report

prints JSON: the architectures that torch has code for, and the cards that it finds. To ask it fixes
which cards a process sees, so no worker does.
"""

import json
import sys
from typing import Any

import torch


def architectures() -> list[str]:
    """List what this torch has code for, as in sm_90 or compute_120 (PTX); none without CUDA."""
    # The public function answers nothing where no card is visible.
    flags = getattr(torch._C, "_cuda_getArchFlags", None)
    return (flags() or "").split() if flags is not None else []


def card(index: int) -> dict[str, Any]:
    told = torch.cuda.get_device_properties(index)
    return {
        "uuid": str(told.uuid),
        "name": told.name,
        "memory_bytes": told.total_memory,
        "capability": [told.major, told.minor],
    }


def main() -> None:
    cards = [card(index) for index in range(torch.cuda.device_count())]
    sys.stdout.write(json.dumps({"architectures": architectures(), "cards": cards}))


if __name__ == "__main__":
    main()
