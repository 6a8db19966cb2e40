"""Computes attention over the paged cache, for decode rows and pieces of prompts in one step."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from workers.engines.text.batch import Batch, DecodeGroup, PagedRows, PromptPiece
from workers.engines.text.cache import PagedCache
from workers.engines.text.ragged import attend_ragged

#: Scores that are written out at once: they, and copies of them, take a few hundred megabytes.
_MOST_SCORES = 1 << 25


def attend(
    query: Tensor,
    cache: PagedCache,
    layer: int,
    batch: Batch,
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Compute the attention of each token; the keys and values are in the cache already.

    query: [tokens, heads, key_dim]; sinks: [heads], a score of each head that no token has
    -> [tokens, heads * value_dim]
    """
    how = _How(scaling, softcap, sinks)
    parts = [_decode(query, cache, layer, group, how) for group in batch.decodes]
    if batch.paged is not None:
        parts.append(_decode_in_place(query, cache, layer, batch.paged, how))
    if batch.ragged is not None:
        shape = cache.shapes[layer]
        parts.append(attend_ragged(query, cache.pages[layer], shape, batch.ragged, scaling))
    parts += [_prefill(query, cache, layer, piece, how) for piece in batch.prompts]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(slots=True, frozen=True)
class _How:
    scaling: float
    softcap: float | None
    sinks: Tensor | None


def _decode_in_place(
    query: Tensor,
    cache: PagedCache,
    layer: int,
    rows: PagedRows,
    how: _How,
) -> Tensor:
    # Here, since Triton is not on every machine and takes a second to import.
    from workers.engines.text.kernels.paged_decode import paged_decode

    shape = cache.shapes[layer]
    return paged_decode(
        query[: rows.count],
        cache.as_stored(layer),
        rows.table,
        rows.lengths,
        longest=rows.longest,
        block_size=cache.block_size,
        kv_heads=shape.kv_heads,
        value_dim=shape.value_dim,
        window=shape.window,
        scaling=how.scaling,
        softcap=how.softcap,
        sinks=how.sinks,
    )


def _decode(
    query: Tensor,
    cache: PagedCache,
    layer: int,
    group: DecodeGroup,
    how: _How,
) -> Tensor:
    rows = group.table.sequences
    each = (group.end - group.start) // rows  # tokens of a row
    shape = cache.shapes[layer]
    keys, values = cache.read(layer, group.table)  # [rows, tokens, kv_heads, dim]
    # Query heads that share a key head lie along the query length, as do the tokens of a row, so
    # it is [rows, kv_heads, each * group, dim].
    by_token = query[group.start : group.end].view(rows, each, shape.kv_heads, -1, shape.key_dim)
    grouped = by_token.transpose(1, 2).reshape(rows, shape.kv_heads, -1, shape.key_dim)
    mask = group.masks[shape.window]
    if each > 1 and mask is not None:
        mask = mask.repeat_interleave(by_token.shape[3], dim=2)
    if how.sinks is not None:  # of each of those, [kv_heads, each * group, 1]
        how = replace(how, sinks=how.sinks.view(shape.kv_heads, -1, 1).repeat(1, each, 1))
    seen = _attention(grouped, keys.transpose(1, 2), values.transpose(1, 2), mask, how)
    if each > 1:
        seen = seen.reshape(rows, shape.kv_heads, each, -1, shape.value_dim).transpose(1, 2)
    return seen.reshape(rows * each, -1)


def _prefill(
    query: Tensor,
    cache: PagedCache,
    layer: int,
    piece: PromptPiece,
    how: _How,
) -> Tensor:
    rows = piece.end - piece.start
    shape = cache.shapes[layer]
    keys, values = cache.read(layer, piece.table)  # [1, tokens, kv_heads, dim]
    grouped = query[piece.start : piece.end].view(rows, shape.kv_heads, -1, shape.key_dim)
    grouped = grouped.permute(1, 2, 0, 3)  # [kv_heads, group, rows, dim]
    if how.sinks is not None:  # one of each head: [kv_heads, group, 1, 1]
        how = replace(how, sinks=how.sinks.view(shape.kv_heads, -1, 1, 1))
    seen = _in_pieces(
        grouped,
        _share(keys[0, : piece.length], grouped.shape[1]),
        _share(values[0, : piece.length], grouped.shape[1]),
        piece.masks[shape.window],
        how,
    )
    return seen.permute(2, 0, 1, 3).reshape(rows, -1)


def _share(rows: Tensor, group: int) -> Tensor:
    """Expand [tokens, kv_heads, dim] to [kv_heads, group, tokens, dim] without a copy."""
    return rows.transpose(0, 1).unsqueeze(1).expand(-1, group, -1, -1)


def _in_pieces(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, how: _How) -> Tensor:
    """Compute a prompt's attention; where scores are written out, some of its rows at a time.

    query: [kv_heads, group, rows, dim], mask: [rows, tokens]; None is causal from the first token
    """
    heads, group, rows, _ = query.shape
    most = max(1, _MOST_SCORES // (heads * group * key.shape[-2]))
    if (how.softcap is None and how.sinks is None) or rows <= most:
        return _attention(query, key, value, mask, how)
    places = torch.arange(key.shape[-2], device=query.device)
    parts = []
    for start in range(0, rows, most):
        part = query[:, :, start : start + most]
        if mask is None:
            hidden = places > places[start : start + most, None]
            seen = part.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
        else:
            seen = mask[start : start + most]
        parts.append(_written_out(part, key, value, seen, how))
    return torch.cat(parts, dim=2)


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, how: _How) -> Tensor:
    """Compute attention; the mask is added to the scores, None is causal from the first token."""
    if how.softcap is not None or how.sinks is not None:
        return _written_out(query, key, value, mask, how)
    if mask is not None and mask.dim() == 2:
        mask = mask[None, None]
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=how.scaling
    )


def _written_out(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, how: _How
) -> Tensor:
    """Compute attention with scores squeezed into (-cap, cap), as Gemma 2 does, or with sinks.

    No fused kernel knows these. A sink takes part in the sum of the weights, and has no value.
    """
    scores = torch.matmul(query, key.transpose(-1, -2)) * how.scaling
    if how.softcap is not None:
        scores = torch.tanh(scores / how.softcap) * how.softcap
    if mask is None:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu_(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    else:
        scores = scores + mask
    if how.sinks is not None:
        sinks = how.sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)
        scores = torch.cat((scores, sinks), dim=-1)
    weights = functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights[..., : key.shape[-2]], value)
