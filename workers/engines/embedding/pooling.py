"""Pools the states of a text's tokens into one vector, by sentence-transformers' definitions."""

from collections.abc import Sequence

import torch
from torch import Tensor


def pool(states: Tensor, mask: Tensor, modes: Sequence[str], skip: Tensor) -> Tensor:
    """Pool [texts, tokens, width] into float32 [texts, modes * width].

    mask: [texts, tokens], 1 for a token and 0 for the padding after it. skip: [texts], how many
    tokens at the beginning are left out; of them only the weighted mean's positions are kept.
    """
    states = states.float()
    positions = torch.arange(states.shape[1], device=states.device)
    kept = (mask * (positions >= skip[:, None])).unsqueeze(-1).float()
    return torch.cat([_pool_one(states, kept, mask, skip, mode) for mode in modes], dim=-1)


def _pool_one(states: Tensor, kept: Tensor, mask: Tensor, skip: Tensor, mode: str) -> Tensor:
    """Pool in one mode; kept: [texts, tokens, 1] is 1 for each token that counts."""
    rows = torch.arange(states.shape[0], device=states.device)
    match mode:
        case "cls":
            return states[rows, skip]
        case "lasttoken":
            return states[rows, mask.sum(dim=1) - 1]
        case "max":
            return states.masked_fill(kept == 0, -torch.inf).amax(dim=1)
        case "mean":
            return (states * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1e-9)
        case "mean_sqrt_len_tokens":
            return (states * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1e-9).sqrt()
        case "weightedmean":
            ranks = torch.arange(1, states.shape[1] + 1, device=states.device)
            weights = kept * ranks[None, :, None]
            return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)
        case _:
            raise ValueError(f"no pooling mode {mode}")
