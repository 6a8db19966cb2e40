"""Computes plans for models that the paged cache cannot hold, each sequence by itself.

Recurrent and hybrid models keep a state in each layer, beside keys and values or in their place;
others read pictures, or have an encoder for the prompt. A sequence has the library's own cache
here, which takes its prompt as a whole, then token after token. Everything around it is the same:
sampling, grammars, streams, cancelling.
"""

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from workers.engines.base import Refused
from workers.engines.text.batch import Carry
from workers.engines.text.cache_plan import CachePlan
from workers.engines.text.generate_steps import ENCODED, GenerateSteps
from workers.engines.text.loading import LoadedModel
from workers.engines.text.lora_layers import LoraRows
from workers.engines.text.lora_slots import LoraBounds, LoraSlots
from workers.engines.text.plan import Chunk, Plan, Sequence
from workers.engines.torch_env import load_failed

#: What the library's classes call the cache that they return, and take at the next call.
_CACHES = ("past_key_values", "cache_params", "state")
_PROBES = (2, 18)  #: tokens of two sequences, whose caches' sizes are compared


@dataclass(slots=True)
class _State:
    """Holds what a sequence's tokens have left in the layers."""

    cache: Any = None
    length: int = 0  #: tokens
    logits: Tensor | None = None  #: [vocab], after the last of them


class SequentialRunner:
    """Computes plans as ``runner.Runner`` does. Owns the weights and the sequences' caches."""

    shares_blocks = False  #: a cache belongs to one sequence
    cache = None  #: of blocks

    def __init__(
        self, loaded: LoadedModel, plan: CachePlan, loras: LoraBounds | None = None
    ) -> None:
        """Set up. ``loras``: those that steps may have; only where a decoder reads the prompts.

        Raises Refused if the model returns no cache, or its cache is beyond the budget."""
        self._model = loaded.model
        self._device = loaded.device
        self._vocab = loaded.vocab_size
        self._states: WeakKeyDictionary[Sequence, _State] = WeakKeyDictionary()
        self._cache_name = ""
        #: it makes only the logits that it is asked for: each row is as wide as the vocabulary
        self._keeps = "logits_to_keep" in signature(loaded.model.forward).parameters
        self._steps = None if loaded.family == "causal" else GenerateSteps(loaded)
        self._encodes = loaded.family == "seq2seq"
        self.loras: LoraSlots | None = None
        if loras is not None and loaded.family == "causal":
            self.loras = LoraSlots.of(loaded, loras)
        self.blocks, self.rows = self._plan(plan)

    @torch.inference_mode()
    def run(self, plan: Plan) -> tuple[list[Chunk], Tensor]:
        """Compute a plan; returns what ``Runner.run`` does.

        Pieces of a prompt are computed with its last one.
        """
        for sequence in plan.preempted:
            self._states.pop(sequence, None)
        if self.loras is not None and all(each.sequence.lora is None for each in plan.chunks):
            self.loras.hooks.apply(None)
        order = [chunk for chunk in plan.chunks if chunk.samples]
        rows = [self._advance(chunk)[None] for chunk in order]
        rows += [self._score(chunk) for chunk in plan.prefills if chunk.scored]
        if not rows:
            return [], torch.empty(0, self._vocab, device=self._device)
        return order, torch.cat(rows)

    def launch(self, plan: Plan, carry: Carry | None) -> tuple[list[Chunk], Tensor, None]:
        """Compute a plan; returns what ``Runner.launch`` does. Nothing is carried to here."""
        assert carry is None
        return *self.run(plan), None

    def scrub(self, blocks: Rows[int]) -> None:
        """Do nothing: the caches of a broken sequence go with it."""

    def hold_numbers(self, _blocks: Rows[int]) -> bool:
        """Return True: no other sequence reads what one has left."""
        return True

    def release_workspace(self) -> None:
        """Do nothing: there is none."""

    def close(self) -> None:
        if self.loras is not None:
            self.loras.close()
        self._states.clear()

    def _advance(self, chunk: Chunk) -> Tensor:
        """Compute the tokens of a sequence that are not in its state. -> [vocab]"""
        tokens = chunk.sequence.tokens[: chunk.end]
        state = self._states.get(chunk.sequence) or _State()
        if state.length < len(tokens) - 1:
            state = _State()
        if state.length < len(tokens):  # else its logits were not used: a grammar's mask was late
            # A pass that fails leaves the cache half written, so it is forgotten until it is whole.
            self._states.pop(chunk.sequence, None)
            self._choose_lora(chunk.sequence)
            given = {} if self._steps is None else self._steps.inputs_of(chunk.sequence)
            cache, logits = self._forward(tokens, state, given)
            state = self._states[chunk.sequence] = _State(cache, len(tokens), logits)
        assert state.logits is not None
        return state.logits

    def _score(self, chunk: Chunk) -> Tensor:
        """Compute the logits at a prompt's tokens. -> [scored, vocab]"""
        ids = torch.tensor([chunk.sequence.tokens[: chunk.end]], device=self._device)
        count = chunk.end - chunk.start
        self._choose_lora(chunk.sequence)
        output = self._model(input_ids=ids, use_cache=False, **self._last(count))
        logits: Tensor = output.logits[0, -count:]
        return logits[: chunk.scored].clone()  # a part of one tensor would keep all of it

    def _choose_lora(self, sequence: Sequence) -> None:
        """Let the next pass be with a sequence's LoRA, or with none."""
        if self.loras is not None:
            slot = sequence.lora
            self.loras.hooks.turn_on(None if slot is None else LoraRows.alone(slot))

    def _last(self, count: int) -> dict[str, int]:
        """Return the argument by which only so many of the last logits are made."""
        return {"logits_to_keep": count} if self._keeps else {}

    def _forward(
        self, tokens: list[int], state: _State, inputs: Mapping[str, Any]
    ) -> tuple[Any, Tensor]:
        """Compute tokens after those of a state. -> the cache with all of them, logits [vocab]"""
        cache = state.cache
        if self._steps is not None:
            if cache is None:
                return self._steps.begin(tokens, inputs)
            return self._steps.go_on(tokens, cache)
        ids = torch.tensor([tokens[state.length :]], device=self._device)
        given = {} if cache is None else {self._cache_name: cache}
        output = self._model(input_ids=ids, use_cache=True, **given, **self._last(1))
        if not self._cache_name:
            found = [name for name in _CACHES if getattr(output, name, None) is not None]
            if not found:
                raise load_failed("The text engine does not support this model: it has no cache.")
            self._cache_name = found[0]
        # Rows of one tensor would keep all of it.
        return getattr(output, self._cache_name), output.logits[0, -1].clone()

    @torch.inference_mode()
    def _plan(self, plan: CachePlan) -> tuple[int, int]:
        """Return the blocks and the rows that the budget allows."""
        least, most = _PROBES
        short = self._probe(least)
        of_token = max(0, (self._probe(most) - short) // (most - least))
        of_row = max(0, short - least * of_token)
        if self._encodes:  # what is kept of a prompt is no part of the sequence's tokens
            of_row += max(0, self._probe(least, most) - short) // (most - least) * plan.context
        useful = -(-plan.max_tokens // plan.block_size)
        rows = plan.rows if not of_row else min(plan.rows, plan.budget_bytes // (2 * of_row))
        left = plan.budget_bytes - rows * of_row
        blocks = useful if not of_token else min(useful, left // (of_token * plan.block_size))
        if rows < 1 or blocks < 1:
            needed = 2 * of_row + of_token * plan.block_size
            raise Refused(
                "MODEL_LOAD_FAILED",
                f"kv_cache_bytes is {plan.budget_bytes}; this model needs at least {needed}.",
            )
        return blocks, rows

    def _probe(self, length: int, encoded: int = _PROBES[0]) -> int:
        """Return the bytes that the cache of a sequence takes, after a prompt of an encoder."""
        given = {ENCODED: [0] * encoded} if self._encodes else {}
        return _bytes_of(self._forward([0] * length, _State(), given)[0])


def _bytes_of(cache: Any) -> int:
    """Count the bytes of all tensors that an object holds."""
    found = {each.untyped_storage().data_ptr(): each for each in _tensors(cache, set())}
    return sum(each.numel() * each.element_size() for each in found.values())


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif id(value) not in seen:
        seen.add(id(value))
        if isinstance(value, dict):
            parts: Any = value.values()
        elif isinstance(value, list | tuple):
            parts = value
        else:
            parts = vars(value).values() if hasattr(value, "__dict__") else ()
        for part in parts:
            yield from _tensors(part, seen)
