"""Holds the LoRAs of a base beside its weights: a bounded number, those least used leave first."""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from workers.engines import torch_env
from workers.engines.defaults import LORA_RANK_STEP
from workers.engines.text.loading import LoadedModel
from workers.engines.text.lora_files import (
    FAULT,
    LoraPair,
    LoraWeights,
    linear_layers,
    read_lora,
    sizes,
)
from workers.engines.text.lora_layers import JoinedLoras, LoraHooks, LoraRows, LoraStack
from workers.engines.torch_env import load_failed
from workers.protocol import TextLora, TextOptions


@dataclass(slots=True, frozen=True)
class LoraBounds:
    """Bounds the LoRAs that a worker holds."""

    most: int  #: at once
    rank: int  #: of each

    @classmethod
    def of(cls, options: TextOptions) -> Self | None:
        return cls(options.max_loras, options.max_lora_rank) if options.max_loras else None


_MOST_READ = 4  #: LoRAs in RAM that wait for slots


class LoraSlots:
    """Owns the slots, and which LoRA is in which. One that a text uses never leaves.

    ``read`` is for any thread; everything else for the one that computes steps.
    """

    def __init__(
        self, model: Any, bounds: LoraBounds, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        """``dtype``: of the model; ``device``: of layers whose weights do not tell."""
        self._layers: dict[str, nn.Module] = linear_layers(model, model.get_output_embeddings())
        self._devices = {
            path: next((each.device for each in chain(layer.parameters(), layer.buffers())), device)
            for path, layer in self._layers.items()
        }
        self._most = bounds.most
        self._most_rank = bounds.rank
        # On a CPU in full precision, as the library that trains them does it: products so narrow
        # take half the time of bfloat16's in small models, as long in large ones (Zen 5).
        self._dtype = torch.float32 if device.type == "cpu" else dtype
        self._slots: OrderedDict[str, int] = OrderedDict()  #: by the LoRA's path, least used first
        self._read: WeakValueDictionary[str, LoraWeights] = WeakValueDictionary()
        self._users: Counter[int] = Counter()  #: texts' jobs by slot
        self._stacks: dict[str, LoraStack] = {}
        self._room = (0, 0)  #: slots of each stack, and the rank that each slot has room for
        self.layout = 0  #: changes whenever stacks come, go, or lie elsewhere
        self.hooks = LoraHooks(self._layers, self._stacks)
        self.joined = JoinedLoras(self._layers, self._stacks)

    @classmethod
    def of(cls, loaded: LoadedModel, bounds: LoraBounds) -> Self:
        return cls(loaded.model, bounds, dtype=loaded.dtype, device=loaded.device)

    @property
    def held(self) -> list[str]:
        """Return the paths of the LoRAs that are here, the least used first."""
        return list(self._slots)

    @property
    def used(self) -> int:
        """Count the jobs that use a LoRA."""
        return self._users.total()

    def read(self, lora: TextLora) -> LoraWeights | None:
        """Read a LoRA's files. None if it is here, or is to be read when it has a slot: not many
        may lie in RAM. Raises Refused."""
        if lora.path in self._slots:
            return None
        found = self._read.get(lora.path)
        if found is not None or len(self._read) >= _MOST_READ:
            return found
        return self._read_now(lora)

    def _read_now(self, lora: TextLora) -> LoraWeights:
        found = read_lora(lora, self._layers, self._dtype)
        if found.rank > self._most_rank:
            raise load_failed(
                f"{FAULT}: its rank is {found.rank}, and text.max_lora_rank is {self._most_rank}."
            )
        self._read[lora.path] = found
        return found

    @torch.inference_mode()
    def take(self, lora: TextLora, weights: LoraWeights | None) -> int | None:
        """Return a LoRA's slot for a job that uses it from now on; None: jobs use all slots.

        ``weights``: what ``read`` has returned. Raises Refused.
        """
        slot = self._slots.get(lora.path)
        if slot is None:
            slot = self._free_slot()
            if slot is None:
                return None
            self._fill(slot, weights or self._read_now(lora))
            self._slots[lora.path] = slot
        self._slots.move_to_end(lora.path)
        self._users[slot] += 1
        return slot

    def give_back(self, slot: int) -> None:
        """Note that a job has ended that used a slot."""
        self._users[slot] -= 1
        if not self._users[slot]:
            del self._users[slot]

    def any_of(self, places: Tensor) -> LoraRows:
        """Return the rows of a step that may be of whatever LoRAs there are.

        places: [tokens], the slot of each token, ``NO_SLOT`` for none. Nothing of them is read on
        the host: other slots may be there when the same operations are run again.
        """
        slots = self._room[0]
        every = torch.arange(slots, device=places.device)
        hidden = (places[:, None] != every)[:, :, None]
        return LoraRows(frozenset(range(slots)), 0, slots, hidden)

    @contextmanager
    def trial(self) -> Iterator[list[int]]:
        """Hold made-up LoRAs of all layers while steps with them are compared; yields their slots.

        No text has one yet. Each changes what a layer gives by about half of that.
        """
        slots = [*range(min(self._most, 2))]
        try:
            for slot in slots:
                self._fill(slot, self._made_up(slot))
            yield slots
        finally:
            self.hooks.turn_off()
            for slot in slots:
                self._clear(slot)

    def _made_up(self, seed: int) -> LoraWeights:
        random = torch.Generator().manual_seed(seed)
        rank = min(self._most_rank, LORA_RANK_STEP)

        def matrix(columns: int, scale: float) -> Tensor:
            return (torch.randn(rank, columns, generator=random) * scale).to(self._dtype)

        pairs = {}
        for path, layer in self._layers.items():
            found = sizes(layer)
            assert found is not None
            inputs, outputs = found
            pairs[path] = LoraPair(matrix(inputs, inputs**-0.5), matrix(outputs, 0.5 * rank**-0.5))
        return LoraWeights(pairs)

    def close(self) -> None:
        self.hooks.turn_off()
        self._stacks.clear()
        self._slots.clear()

    def _free_slot(self) -> int | None:
        """Return the lowest free slot, or that of the least used LoRA that no job uses."""
        if len(self._slots) < self._most:
            return min(set(range(self._most)) - set(self._slots.values()))
        for path, slot in self._slots.items():
            if slot not in self._users:
                del self._slots[path]
                self._clear(slot)
                return slot
        return None

    def _clear(self, slot: int) -> None:
        for path, stack in list(self._stacks.items()):
            if slot in stack.slots:
                stack.clear(slot)
            if not stack.slots:
                del self._stacks[path]
                self.layout += 1
                self.joined.forget()
        if not self._stacks:
            self._room = (0, 0)

    def _fill(self, slot: int, weights: LoraWeights) -> None:
        """Write a LoRA's pairs into its slot, which is empty. Raises Refused; then it is again."""
        try:
            self._make_room(slot + 1, -(-weights.rank // LORA_RANK_STEP) * LORA_RANK_STEP)
            for path, pair in weights.pairs.items():
                if path not in self._stacks:
                    self.layout += 1
                    self._stacks[path] = self._stack(path)
                self._stacks[path].put(slot, pair)
        except Exception as error:
            self._clear(slot)
            if not torch_env.is_out_of_memory(error):
                raise
            raise torch_env.out_of_memory("this LoRA beside its base") from None

    def _stack(self, path: str) -> LoraStack:
        found = sizes(self._layers[path])
        assert found is not None
        return LoraStack(found, *self._room, dtype=self._dtype, device=self._devices[path])

    def _make_room(self, slots: int, rank: int) -> None:
        """Let all stacks have so many slots of such a rank: twice the slots, when they grow."""
        room = self._room
        if slots > room[0]:
            room = (min(self._most, max(slots, 2 * room[0])), room[1])
        room = (room[0], max(rank, room[1]))
        if room != self._room:
            self.layout += 1
            for stack in self._stacks.values():
                stack.grow(*room)
            self._room = room
