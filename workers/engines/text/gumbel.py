"""Makes Gumbel noise with a counter-based generator, the same on every device.

Each number is a hash of (seed, position, token id) instead of the next of a stream, so a row's
noise depends on nothing beside it.
"""

import torch
from torch import Tensor


def gumbel_noise(keys: Tensor, vocab: int) -> Tensor:
    """Make Gumbel noise. keys: [rows, 2] int32 -> [rows, vocab] float32.

    The hash is MurmurHash3's finaliser over the token ids, twice; int32 products wrap.
    """
    ids = torch.arange(vocab, dtype=torch.int32, device=keys.device)
    mixed = _mix_(ids * -1640531527 + keys[:, :1])  # [rows, vocab]
    mixed = _mix_(mixed ^ keys[:, 1:])
    # 23 bits and a half fit float32 exactly, so the value is never 0 nor 1.
    uniform = (mixed & 0x7FFFFF).float().add_(0.5).mul_(2.0**-23)
    return uniform.log_().neg_().log_().neg_()


def _mix_(bits: Tensor) -> Tensor:
    bits ^= (bits >> 16) & 0xFFFF
    bits *= -2048144789
    bits ^= (bits >> 13) & 0x7FFFF
    bits *= -1028477387
    bits ^= (bits >> 16) & 0xFFFF
    return bits
