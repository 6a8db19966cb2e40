"""Lets requests have the LoRAs that they name, in the order in which they came."""

from collections import deque
from collections.abc import Iterator

from workers.engines.base import Refused
from workers.engines.text.lora_files import LoraWeights
from workers.engines.text.lora_slots import LoraSlots
from workers.engines.text.request import Request
from workers.engines.torch_env import load_failed
from workers.protocol import TextLora


class LoraQueue:
    """Owns the requests that wait for a slot, and which slot each of the others has.

    While one waits, those that come later wait behind it, even for a LoRA that is here: otherwise
    the LoRAs that are asked for all the time would never leave.
    """

    def __init__(self, slots: LoraSlots | None) -> None:
        self._slots = slots
        self._waiting: deque[tuple[Request, TextLora, LoraWeights | None]] = deque()
        self._taken: dict[str, int] = {}  #: slots by the jobs that use them

    def __len__(self) -> int:
        return len(self._waiting)

    def read(self, lora: TextLora) -> LoraWeights | None:
        """Read a LoRA's files, in any thread, unless it is here. Raises Refused."""
        return self._there.read(lora)

    def add(self, request: Request, lora: TextLora, weights: LoraWeights | None) -> None:
        """Queue a request; ``weights``: what ``read`` has returned."""
        self._waiting.append((request, lora, weights))

    def take(self) -> Iterator[tuple[Request, Refused | None]]:
        """Yield the requests that may begin, and those whose LoRA is refused, with the reason."""
        while self._waiting:
            request, lora, weights = self._waiting[0]
            try:
                slot = self._there.take(lora, weights)
            except Refused as refused:
                self._waiting.popleft()
                yield request, refused
                continue
            if slot is None:
                return
            self._waiting.popleft()
            self._taken[request.job.id] = slot
            for generation in request.generations:
                generation.sequence.lora = slot
            yield request, None

    def forget(self, request: Request) -> None:
        """Let go what a request that has ended holds or waits for."""
        if (slot := self._taken.pop(request.job.id, None)) is not None:
            self._there.give_back(slot)
        elif self._waiting and request.job.lora is not None:
            self._waiting = deque(each for each in self._waiting if each[0] is not request)

    @property
    def _there(self) -> LoraSlots:
        if self._slots is None:
            raise load_failed("This model was loaded without room for LoRAs beside its weights.")
        return self._slots
