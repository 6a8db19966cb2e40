"""Computes norms in few operations: those of a model's layers, and of their query and key heads."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

#: normalises [tokens, heads * head_dim], seen as [tokens, heads, head_dim] or as it is
HeadNorm = Callable[[Tensor], Tensor]


class Norm:
    """Computes the root mean square norm over the last dimension.

    On a CPU the library's is a dozen operations. The mean of x and -x together is zero and their
    variance is the mean square of x, so a layer norm over both is the same norm, in three. A weight
    in full precision is for formats that would round it: the norm is rounded once, at its end.
    """

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        """Take a weight of [size]."""
        self._size = weight.shape[0]
        self._epsilon = epsilon
        self._mirror = weight.device.type == "cpu"
        self._weight = torch.cat((weight, weight)) if self._mirror else weight

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise x, [tokens, size]."""
        if not self._mirror:
            same = x.to(self._weight.dtype)
            normed = functional.rms_norm(same, (self._size,), self._weight, self._epsilon)
            return normed.to(x.dtype)
        both = torch.cat((x, -x), dim=-1)
        normed = functional.layer_norm(both, (2 * self._size,), self._weight, None, self._epsilon)
        return normed[:, : self._size]


@dataclass(slots=True, frozen=True)
class MeanNorm:
    """Computes the layer norm over the last dimension, without a bias."""

    weight: Tensor  #: [size]
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise x, [tokens, size]."""
        return functional.layer_norm(x, self.weight.shape, self.weight, None, self.epsilon)


@dataclass(slots=True, frozen=True)
class EachHeadNorm:
    """Computes the norm of each query and key head."""

    weight: Tensor  #: [heads, head_dim], a row per query head and per key head
    epsilon: float
    centred: bool  #: the mean of a head is taken off

    def __call__(self, heads: Tensor) -> Tensor:
        """Normalise each head of [tokens, heads, head_dim]."""
        size = self.weight.shape[-1:]
        same = heads.to(self.weight.dtype)
        if self.centred:
            normed = functional.layer_norm(same, size, None, None, self.epsilon)
        else:
            normed = functional.rms_norm(same, size, None, self.epsilon)
        return normed.mul_(self.weight).to(heads.dtype)


@dataclass(slots=True, frozen=True)
class AllHeadsNorm:
    """Computes the norm over all query heads together, and over all key heads."""

    queries: Norm
    keys: Norm
    query_width: int

    def __call__(self, heads: Tensor) -> Tensor:
        """Normalise [tokens, heads, head_dim]."""
        flat = heads.reshape(len(heads), -1)
        queries = self.queries(flat[:, : self.query_width])
        keys = self.keys(flat[:, self.query_width :])
        return torch.cat((queries, keys), dim=-1).view(heads.shape)


AnyNorm = Norm | MeanNorm


def norm_of(module: Any) -> AnyNorm:
    """Return the norm that a module of the library computes."""
    weight, epsilon = _parts(module)
    # A copy, as the others are: the weight's file may be mapped, and is not to stay so.
    return MeanNorm(weight.clone(), epsilon) if _is_centred(module) else Norm(weight, epsilon)


def head_norm_of(attention: Any, *, queries: int, keys: int, head_dim: int) -> HeadNorm | None:
    """Return the norms of so many query heads and key heads as one; None if there is none."""
    query_norm = getattr(attention, "q_norm", None)
    if query_norm is None:
        return None
    weight, epsilon = _parts(query_norm)
    key_weight, _ = _parts(attention.k_norm)
    if weight.dim() == 1 and weight.shape[0] != head_dim:
        return AllHeadsNorm(Norm(weight, epsilon), Norm(key_weight, epsilon), queries * head_dim)
    rows = [weight.expand(queries, head_dim), key_weight.expand(keys, head_dim)]
    return EachHeadNorm(torch.cat(rows), epsilon, _is_centred(query_norm))


def _parts(module: Any) -> tuple[Tensor, float]:
    """Return a norm's weight and its epsilon."""
    weight: Tensor = module.weight.detach()
    if hasattr(module, "variance_epsilon"):
        return weight, module.variance_epsilon
    return 1.0 + weight.float(), module.eps  # Gemma's, whose weights are distances from one


def _is_centred(module: Any) -> bool:
    return type(module).__name__.endswith("LayerNorm")
