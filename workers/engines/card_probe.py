"""Finds out in a process of its own whether a new one can compute on each card.

    python -m workers.engines.card_probe

prints a JSON list: null for each visible card that computes, or what it failed with.
"""

import json
import sys

import torch

from workers.faults import classify

_SIDE = 256


def failure(device: torch.device) -> str | None:
    """Multiply on a device, and say what is wrong; None if the product is right.

    A card that is full of models has no room for one more context. That is no fault of its.
    """
    try:
        ones = torch.ones(_SIDE, _SIDE, device=device)
        right = bool((ones @ ones == _SIDE).all())
    except Exception as error:  # noqa: BLE001  whatever CUDA raises is the answer
        fault = classify(error)
        if fault is not None and fault.blame == "memory":
            return None
        return str(error).partition("\n")[0][:200] or type(error).__name__
    return None if right else "a product of matrices is wrong"


def main() -> None:
    """Print the result for each visible card; an empty list if CUDA shows none."""
    devices = (torch.device("cuda", index) for index in range(torch.cuda.device_count()))
    sys.stdout.write(json.dumps([failure(device) for device in devices]))


if __name__ == "__main__":
    main()
