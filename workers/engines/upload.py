"""Copies weights from mapped files to a card through memory that the card reads by itself.

From pageable memory the driver copies piece by piece and waits for each. Here the card fetches one
buffer while the processor fills the other, and numbers change their format on the card.
"""

import torch
from torch import Tensor

_BUFFER = 64 << 20  #: bytes of each of the two


class Upload:
    """Copies tensors of the host to tensors of a device. Call ``finish`` before they are read."""

    def __init__(self, device: torch.device, *, buffer_bytes: int = _BUFFER) -> None:
        """Take the buffers; on a device other than CUDA tensors are copied as they are."""
        self._device = device
        self._bytes = buffer_bytes
        self._on_card = device.type == "cuda"
        self._buffers: list[Tensor] = []
        self._sent: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0
        if self._on_card:
            try:
                self._buffers = [
                    torch.empty(buffer_bytes, dtype=torch.uint8, pin_memory=True) for _ in range(2)
                ]
            except RuntimeError:  # some drivers pin little memory, and WSL's hardly any
                self._on_card = False
                return
            self._stream = torch.cuda.Stream(device)

    def put(self, source: Tensor, out: Tensor) -> None:
        """Copy a tensor to one of the same shape on the device, in whichever format that has."""
        if not self._on_card or source.device.type != "cpu":
            out.copy_(source)
            return
        rows = source.reshape(-1)  # a copy only of what is not contiguous
        target = out.view(-1)
        step = self._bytes // source.element_size()
        for start in range(0, len(rows), step):
            self._put_piece(rows[start : start + step], target[start : start + step])

    def join(self) -> None:
        """Let what the device computes from now on wait for all that was put."""
        if self._on_card:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def finish(self) -> None:
        """Wait until all is on the device, and give the buffers back."""
        self.join()
        if self._on_card:
            self._wait()
        self._buffers.clear()

    def _put_piece(self, source: Tensor, out: Tensor) -> None:
        turn, self._turn = self._turn, 1 - self._turn
        if (sent := self._sent[turn]) is not None:
            sent.synchronize()
        staged = self._buffers[turn][: source.nbytes].view(source.dtype)
        staged.copy_(source)
        self._sent[turn] = self._send(staged, out)

    def _send(self, staged: Tensor, out: Tensor) -> torch.cuda.Event:
        """Begin a copy; the event is over when the buffer may be filled again."""
        # What was in the memory before may still be read by the current stream.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            there = staged
            if staged.dtype != out.dtype:  # or the processor would convert them
                there = staged.to(self._device, non_blocking=True)
            out.copy_(there, non_blocking=True)
            out.record_stream(self._stream)
            event = torch.cuda.Event()
            event.record()
        return event

    def _wait(self) -> None:
        self._stream.synchronize()
