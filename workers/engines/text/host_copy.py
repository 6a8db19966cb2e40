"""Brings a tensor of the device to the host without a wait in front of the next step."""

import torch
from torch import Tensor


class HostCopy:
    """Copies a tensor to the host once the device has computed it.

    The copy goes to pinned memory and is queued behind what computes the tensor, so making it does
    not wait; reading it waits for this copy, and for nothing that was queued later.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._tensor = tensor
        if tensor.device.type == "cuda":
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensor.device))

    def read(self) -> Tensor:
        """Return the tensor on the host; waits until it has arrived."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensor
