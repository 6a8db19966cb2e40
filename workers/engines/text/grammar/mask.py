"""Applies masks of tokens to logits."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from workers.engines.text.grammar.constraint import Words
from workers.engines.text.sampling_params import upload

_NEVER = float("-inf")


def masked(logits: Tensor, rows: Sequence[int], words: Sequence[Words]) -> Tensor:
    """Rule out, in some rows, all tokens that may not follow. -> [rows, vocab]

    logits: [rows, vocab] float, which are not changed; words: those of each of ``rows``.
    """
    out = _ruled_out(np.stack(words), logits)
    if len(rows) == len(logits):
        return logits.masked_fill(out, _NEVER)
    index = upload(logits.device, ints={"rows": rows})["rows"]
    return logits.index_copy(0, index, logits[index].masked_fill_(out, _NEVER))


def _ruled_out(words: Words, logits: Tensor) -> Tensor:
    """Return where a bit is not set. words: [rows, words]; -> [rows, vocab] bool

    To a card go the words, a 32nd of the mask, from pinned memory: the host does not wait.
    """
    vocab = logits.shape[-1]
    if logits.device.type == "cpu":
        bits = np.unpackbits((~words).view(np.uint8), axis=1, bitorder="little", count=vocab)
        return torch.from_numpy(bits.view(np.bool_))
    sent = torch.from_numpy(words)
    if logits.device.type == "cuda":
        sent = sent.pin_memory().to(logits.device, non_blocking=True)
    return expand(sent.to(logits.device), vocab)


def expand(words: Tensor, vocab: int) -> Tensor:
    """Return where a bit is not set, as a device computes it. words: [rows, words] int32"""
    places = torch.arange(32, dtype=torch.int32, device=words.device)
    bits = (words.unsqueeze(-1) >> places) & 1
    return bits.view(len(words), -1)[:, :vocab] == 0
