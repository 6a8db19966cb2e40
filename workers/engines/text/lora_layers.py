"""Adds what LoRAs change to the outputs of linear layers, for rows of several LoRAs in one step.

The pairs of all LoRAs that are held lie side by side in each layer. A step multiplies all its
tokens with those in use, hides from each token what is not its own, and adds the rest: three
operations a layer, whatever LoRAs meet in a step.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from workers.engines.text.lora_files import LoraPair
from workers.engines.text.plan import Chunk
from workers.engines.text.sampling_params import upload


@dataclass(slots=True, frozen=True)
class LoraRows:
    """Tells which slots' LoRAs change the tokens of a step."""

    slots: frozenset[int]
    first: int  #: of these
    last: int  #: one beyond
    #: [tokens, last - first, 1] bool, what a token has nothing of; None: all tokens are one's
    hidden: Tensor | None
    #: the slots, where they lie so far apart that what is between costs more than copies of
    #: theirs; ``hidden`` is [tokens, slots, 1] then. None: all between first and last are used
    apart: Tensor | None = None
    elsewhere: dict[torch.device, Tensor] = field(default_factory=dict)  #: copies of the same
    apart_elsewhere: dict[torch.device, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, places: Sequence[int], sent: Tensor) -> "LoraRows":
        """Make it of the slot of each token, negative for none; ``sent``: the same, [tokens]."""
        slots = frozenset(places) - {NO_SLOT}
        first, last = min(slots), max(slots) + 1
        if len(set(places)) == 1:
            return cls(slots, first, last, None)
        if last - first > _FAR * len(slots):
            apart = upload(sent.device, ints={"slots": sorted(slots)})["slots"]
            return cls(slots, first, last, (sent[:, None] != apart)[:, :, None], apart)
        every = torch.arange(first, last, device=sent.device)
        return cls(slots, first, last, (sent[:, None] != every)[:, :, None])

    @classmethod
    def alone(cls, slot: int) -> "LoraRows":
        """Make it for tokens that are all of one slot."""
        return cls(frozenset((slot,)), slot, slot + 1, None)

    def hidden_on(self, device: torch.device) -> Tensor | None:
        if self.hidden is None or self.hidden.device == device:
            return self.hidden
        if device not in self.elsewhere:
            self.elsewhere[device] = self.hidden.to(device)
        return self.elsewhere[device]

    def apart_on(self, device: torch.device) -> Tensor | None:
        if self.apart is None or self.apart.device == device:
            return self.apart
        if device not in self.apart_elsewhere:
            self.apart_elsewhere[device] = self.apart.to(device)
        return self.apart_elsewhere[device]


NO_SLOT = -1
#: Reading a matrix, writing a copy and reading that is three times reading it.
_FAR = 3


def places_of(chunks: Iterable[Chunk]) -> list[int]:
    """Return the slot of each token of some chunks, ``NO_SLOT`` for none; nothing if all have
    none."""
    chunks = list(chunks)
    if all(chunk.sequence.lora is None for chunk in chunks):
        return []
    return [
        NO_SLOT if chunk.sequence.lora is None else chunk.sequence.lora
        for chunk in chunks
        for _ in range(chunk.start, chunk.end)
    ]


class LoraStack:
    """Holds the pairs of all slots for one layer; those of slots without one are zeros."""

    def __init__(
        self, sizes: tuple[int, int], slots: int, rank: int, *, dtype: torch.dtype, device: Any
    ) -> None:
        """``sizes``: the layer's inputs and outputs; ``rank``: the room of each slot."""
        self.slots: set[int] = set()  #: those that have a pair here
        self._a = torch.zeros(slots, rank, sizes[0], dtype=dtype, device=device)
        self._b = torch.zeros(slots, rank, sizes[1], dtype=dtype, device=device)

    def grow(self, slots: int, rank: int) -> None:
        """Make room for so many slots of such a rank, at least."""
        for name in ("_a", "_b"):
            old: Tensor = getattr(self, name)
            # Where memory ran out when all stacks were to grow, this one has grown already.
            new = old.new_zeros(max(slots, old.shape[0]), max(rank, old.shape[1]), old.shape[2])
            new[: old.shape[0], : old.shape[1]] = old
            setattr(self, name, new)

    def put(self, slot: int, pair: LoraPair) -> None:
        rank = len(pair.a)
        self._a[slot, :rank].copy_(pair.a)
        self._b[slot, :rank].copy_(pair.b)
        self.slots.add(slot)

    def clear(self, slot: int) -> None:
        self._a[slot].zero_()
        self._b[slot].zero_()
        self.slots.discard(slot)

    def add(self, x: Tensor, y: Tensor, rows: LoraRows) -> None:
        """Add to a layer's outputs what its tokens' LoRAs change.

        x: [tokens, in], y: [tokens, out]
        """
        if self.slots.isdisjoint(rows.slots):
            return
        apart = rows.apart_on(self._a.device)
        if apart is None:
            a, b = self._a[rows.first : rows.last], self._b[rows.first : rows.last]
        else:
            a, b = self._a.index_select(0, apart), self._b.index_select(0, apart)
        inner = functional.linear(x.to(a), a.flatten(0, 1))  # [tokens, slots * rank]
        hidden = rows.hidden_on(a.device)
        if hidden is not None:
            # Filled, not multiplied: what is not finite of another LoRA must not come through.
            inner.view(len(x), *a.shape[:2]).masked_fill_(hidden, 0)
        if y.dtype is b.dtype:
            y.addmm_(inner, b.flatten(0, 1))
        else:
            y.add_((inner @ b.flatten(0, 1)).to(y.dtype))


class LoraHooks:
    """Adds to the outputs of a model's own layers, by hooks that stay while they are of use."""

    def __init__(self, layers: Mapping[str, nn.Module], stacks: Mapping[str, LoraStack]) -> None:
        self._layers = layers
        self._stacks = stacks
        self._handles: dict[str, RemovableHandle] = {}
        self._rows: LoraRows | None = None

    def apply(self, rows: LoraRows | None) -> None:
        """Let the next passes be of these rows. None: of no LoRA, and the hooks are gone."""
        if rows is None:
            if self._handles:
                self.turn_off()
        else:
            self.turn_on(rows)

    def turn_on(self, rows: LoraRows | None) -> None:
        """Let the next passes be of these rows; None: of no LoRA, for a while."""
        if self._handles.keys() != self._stacks.keys():
            self.turn_off()
            for path in self._stacks:
                self._handles[path] = self._hook(path)
        self._rows = rows

    def turn_off(self) -> None:
        """Take the hooks away."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        self._rows = None

    def _hook(self, path: str) -> RemovableHandle:
        def add(_module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if self._rows is not None:
                x: Tensor = inputs[0]
                flat = output.view(-1, output.shape[-1])
                self._stacks[path].add(x.reshape(-1, x.shape[-1]), flat, self._rows)

        return self._layers[path].register_forward_hook(add)


#: The parts of a layer's joined projections, outputs side by side, by the fused decoder's names.
_JOINED = {
    "qkv": (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.qkv_proj",)),
    "output": (("self_attn.o_proj",),),
    "gate_up": (("mlp.gate_proj", "mlp.up_proj"), ("mlp.gate_up_proj",)),
    "down": (("mlp.down_proj",),),
}


class JoinedLoras:
    """Adds to the outputs of joined projections: each LoRA's part to its own columns."""

    def __init__(self, layers: Mapping[str, nn.Module], stacks: Mapping[str, LoraStack]) -> None:
        self._layers = layers
        self._stacks = stacks
        self._made: list[Any] = []
        self._made_of: list[LoraStack] = []
        self._rows: LoraRows | None = None

    def around(self, layers: Sequence[Any], rows: LoraRows) -> Sequence[Any]:
        """Return the fused decoder's layers with LoRAs, for a step with these rows."""
        stacks = list(self._stacks.values())
        if self._made_of != stacks or len(self._made) != len(layers):
            self._made = [self._around(each, index) for index, each in enumerate(layers)]
            self._made_of = stacks
        self._rows = rows
        return self._made

    def forget(self) -> None:
        """Let go of stacks that are held no more: those that take their place need the room."""
        self._made, self._made_of = [], []

    def _around(self, layer: Any, index: int) -> Any:
        changed = {}
        for name, ways in _JOINED.items():
            parts = self._parts(f"model.layers.{index}", ways)
            if parts:
                changed[name] = _WithLoras(getattr(layer, name), parts, self)
        return replace(layer, **changed)

    def _parts(self, layer: str, ways: Iterable[Sequence[str]]) -> list[tuple[LoraStack, int, int]]:
        """Return the parts of a joined projection that LoRAs change, with their columns."""
        found: list[tuple[LoraStack, int, int]] = []
        for names in ways:
            start = 0
            for name in names:
                module: Any = self._layers.get(f"{layer}.{name}")
                if module is None:
                    break
                end = start + module.out_features
                if (stack := self._stacks.get(f"{layer}.{name}")) is not None:
                    found.append((stack, start, end))
                start = end
        return found

    @property
    def rows(self) -> LoraRows:
        assert self._rows is not None
        return self._rows


class _WithLoras:
    """Computes a joined projection, and what LoRAs add to it."""

    def __init__(
        self, projection: Any, parts: list[tuple[LoraStack, int, int]], loras: JoinedLoras
    ) -> None:
        self._projection = projection
        self._parts = parts
        self._loras = loras

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = self._projection(x)
        for stack, start, end in self._parts:
            stack.add(x, y[:, start:end], self._loras.rows)
        return y
