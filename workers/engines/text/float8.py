"""Turns keys and values into numbers of 8 bits (float8 e4m3) and back."""

import torch
from torch import Tensor

DTYPE = torch.float8_e4m3fn
_MOST = torch.finfo(DTYPE).max
_NAN = 0x7F  #: its bits without the sign
EIGHT = 0x50  #: the number 8, as a byte


def narrow(rows: Tensor) -> Tensor:
    """Return the nearest numbers of 8 bits, as bytes; what is too large becomes the largest."""
    return rows.clamp(-_MOST, _MOST).to(DTYPE).view(torch.uint8)


def has_nan(stored: Tensor) -> Tensor:
    """Return whether one of some numbers, given as bytes, is NaN; a tensor of one bool."""
    return ((stored & _NAN) == _NAN).any()


def widen(stored: Tensor, out: Tensor) -> Tensor:
    """Write numbers of 8 bits, given as bytes, to ``out`` in its format, exactly."""
    if out.dtype is torch.bfloat16 and out.device.type == "cpu":
        return _widen_bits(stored, out)
    return out.copy_(stored.view(DTYPE))


def _widen_bits(stored: Tensor, out: Tensor) -> Tensor:
    """Do it by the bits: torch's own conversion takes a CPU five times as long (measured, Zen 5).

    Exponent and fraction keep their places relative to each other, so that all is right but the
    exponent's bias, 7 in place of 127; subnormal numbers too.
    """
    bits = stored.view(torch.int8).to(torch.int16)  # the sign is extended
    magnitude = bits & 0x7F
    bits = (magnitude << 4) | (bits & -32768)
    torch.mul(bits.view(torch.bfloat16), 2.0**120, out=out)
    return out.masked_fill_(magnitude == _NAN, float("nan"))
