"""Holds the sampling settings of requests, and copies those of a step to the device."""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor

from workers.engines.text.grammar.constraint import Constraint
from workers.protocol import Sampling


class SamplingParams:
    """Holds the settings of one request, in the form that a step needs them."""

    def __init__(
        self,
        sampling: Sampling,
        seed: int,
        prompt: Sequence[int],
        vocab: int,
        *,
        choice: int = 0,
        ends: frozenset[int] = frozenset(),
    ) -> None:
        """``choice``: of several with the same seed; ``ends``: tokens not to sample before
        min_tokens."""
        self.temperature = sampling.temperature
        self.top_k = sampling.top_k if sampling.top_k and sampling.top_k < vocab else None
        self.top_p = sampling.top_p
        self.min_p = sampling.min_p
        self.typical_p = sampling.typical_p
        self.repetition = sampling.repetition_penalty
        self.presence = sampling.presence_penalty
        self.frequency = sampling.frequency_penalty
        self.bias = sampling.logit_bias
        self.logprobs = sampling.logprobs
        self.prompt = prompt
        self.greedy = sampling.temperature == 0.0
        self.penalised = (self.repetition, self.presence, self.frequency) != (1.0, 0.0, 0.0)
        self.min_tokens = sampling.min_tokens
        self.barred = sorted(each for each in ends if each < vocab) if self.min_tokens else []
        #: Only the arg max is needed: no copy of the logits, nothing to send to the device.
        self.plain = (
            self.greedy
            and not self.penalised
            and not self.bias
            and not self.barred
            and self.logprobs is None
        )
        self.constraint: Constraint | None = None
        self._seed = f"{seed}/{choice}" if choice else str(seed)

    def constrain(self, constraint: Constraint) -> None:
        """Choose only from the tokens that a grammar lets follow."""
        self.constraint = constraint
        self.plain = False

    def keys(self, position: int) -> tuple[int, int]:
        """Return two signed 32-bit numbers that are this row's own at this position."""
        data = f"{self._seed}:{position}".encode()
        digest = hashlib.blake2b(data, digest_size=8).digest()
        first, second = digest[:4], digest[4:]
        return (
            int.from_bytes(first, "little", signed=True),
            int.from_bytes(second, "little", signed=True),
        )


def upload(
    device: torch.device,
    *,
    ints: Mapping[str, Sequence[int]],
    floats: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, Tensor]:
    """Copy lists of numbers to the device in one transfer.

    Gives a 1-D tensor for each list, by the same names: float32 for ``floats``, int64 for
    ``ints``, which must fit 32 bits. On CUDA the copy leaves from pinned memory, so that the host
    does not wait for the kernels that are queued before it.
    """
    floats = floats or {}
    fractions = torch.tensor(list(chain(*floats.values())), dtype=torch.float32)
    whole = torch.tensor(list(chain(*ints.values())), dtype=torch.int32)
    packed = torch.cat((fractions.view(torch.int32), whole))
    if device.type == "cuda":
        packed = packed.pin_memory()
    packed = packed.to(device, non_blocking=True)
    border = len(fractions)
    sizes = [len(each) for each in (*floats.values(), *ints.values())]
    first = packed[:border].view(torch.float32).split_with_sizes(sizes[: len(floats)])
    second = packed[border:].long().split_with_sizes(sizes[len(floats) :])
    return dict(zip((*floats, *ints), (*first, *second), strict=True))
