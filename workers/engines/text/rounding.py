"""Tells rounding from mistakes, where logits are compared with those that a library computes.

How far two right computations are apart in bfloat16 depends on the model: on its depth, on how wide
its weights are spread, on experts that a router chooses between. So it is measured: each layer's
output of the library's own pass is rounded once more, at random. A wrong block, place, length or
window in the attention goes several times as far.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from workers.engines.text.loading import LoadedModel

log = logging.getLogger(__name__)

#: How far logits may be apart where rounding is not measured, root mean square, in standard
#: deviations of the library's; a mask or a scale that we do not know of goes beyond.
TOLERANCE = {torch.float32: 0.01, torch.bfloat16: 0.5, torch.float16: 0.25}

#: Methods that keep the activations in full precision, and compute in its number format.
_EXACT = (None, "int8", "fp8")

#: How far the worst row and the one in the middle may be off, in those of the passes that were
#: rounded once more. Of 600 right models of 12 families on a CPU, up to 12 layers deep, none was
#: beyond 1.2 and 2.2; of 700 others, up to 32 deep, none beyond 1.5 but one of experts, in int8, at
#: 2.6. A card sums in other orders. Mistakes begin at 3 in one of the two. Both, since a token that
#: goes to another expert moves its row far, but not most rows.
_WORST, _MIDDLE = 2.5, 3.0
_FEW = 6  #: rows: which one is in the middle of fewer depends on chance
#: Passes that are rounded once more. On a CPU each takes seconds with large models.
_PASSES = {"cpu": 1, "cuda": 2}
_AT_ONCE = 8  #: rows that are compared at once: in single precision they need memory of their own
_ALIKE = 1.0  #: standard deviations; logits that have nothing to do with each other are 1.4 apart


def tolerance(loaded: LoadedModel) -> float:
    """Return how far logits may be from the library's without a measurement, in their standard
    deviations."""
    own = TOLERANCE[loaded.dtype]
    return own if loaded.quantization in _EXACT else max(own, TOLERANCE[torch.float16])


def distances(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return how far logits [.., vocab] are apart, as root mean squares, [..] float32."""
    return (ours.float() - theirs.to(ours.device).float()).square().mean(-1).sqrt()


class Rounding:
    """Knows how far right logits of a model may be from those of its library."""

    @torch.inference_mode()
    def __init__(
        self,
        loaded: LoadedModel,
        expected: Sequence[Tensor],
        again: Callable[[], Sequence[Tensor]],
    ) -> None:
        """``expected``: logits, each [tokens, vocab]; ``again``: computes these once more."""
        #: Whether a model is refused for what is beyond the measured limits. They were tried on
        #: CPUs; and a token that goes to another expert, which few passes show, is beyond them.
        self.strict = loaded.device.type == "cpu" and not _has_experts(loaded.model)
        self.spread = torch.cat(list(expected)).std().item()  #: of the logits: standard deviation
        self._most = self._worst = self._middle = tolerance(loaded) * self.spread
        if loaded.dtype is torch.float32 or loaded.quantization not in _EXACT:
            return  # the first is as tight as need be; others round what they multiply, too
        found = []
        for seed in range(_PASSES[loaded.device.type]):
            with _rounded_once_more(loaded.model, torch.finfo(loaded.dtype).eps, seed):
                found += [distances(*pair) for pair in zip(again(), expected, strict=True)]
        noise = torch.cat(found)
        noise = noise[noise.isfinite()].clamp(min=torch.finfo(loaded.dtype).eps * self.spread)
        if not len(noise):
            return  # of a model at the limit of its format
        self._worst = _WORST * noise.max().item()
        self._middle = min(_MIDDLE * noise.median().item(), _ALIKE * self.spread)

    def passes(self, found: Tensor, *, eight_bits: bool = False) -> bool:
        """Return whether a model whose rows are so far off may be served, found as in ``allows``;
        say where that is by more than rounding.

        A card's kernels may round more than a CPU's, for which no model is refused there: only
        what is far off is.
        """
        if self.allows(found, eight_bits=eight_bits):
            return True
        if self.strict or not self.are_close(found):
            return False
        log.warning(
            "logits differ from the library's by %.3f of their spread at most, which is more than "
            "rounding explains: if the answers are bad, report it",
            found.max().item() / self.spread,
        )
        return True

    def allows(self, found: Tensor, *, eight_bits: bool = False) -> bool:
        """Return whether rows are as far off as rounding sends them; found: [rows], see
        ``distances``; NaN is not.

        ``eight_bits``: the cache holds such numbers, which round as much as bfloat16 at its worst.
        """
        worst, middle = found.max().item(), found.median().item()
        if eight_bits:
            return worst <= TOLERANCE[torch.bfloat16] * self.spread
        return worst <= self._worst and (len(found) < _FEW or middle <= self._middle)

    def are_close(self, found: Tensor) -> bool:
        """Return whether rows are nearer than most mistakes leave them, measured or not; found:
        [rows], as in ``allows``."""
        return found.max().item() <= self._most

    def are_near(self, ours: Tensor, plain: Tensor) -> bool:
        """Return whether rows of logits [rows, vocab] differ by rounding only; waits for them.

        A row of the plain ones that holds no numbers tells nothing.
        """
        off = torch.cat(
            [
                distances(mine, theirs)[theirs.isfinite().all(-1)]
                for mine, theirs in zip(ours.split(_AT_ONCE), plain.split(_AT_ONCE), strict=True)
            ]
        )
        return not len(off) or self.allows(off)


def _has_experts(model: nn.Module) -> bool:
    return any("experts" in name.split(".") for name, _ in model.named_modules())


@contextmanager
def _rounded_once_more(model: nn.Module, eps: float, seed: int) -> Iterator[None]:
    """Let each layer give what it computes with an error of one rounding, half of ``eps`` at most.

    The errors are a sign by token times a number by column: made on the CPU for every device, and
    few of them.
    """
    random = torch.Generator().manual_seed(seed)

    def rounded(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point() or output.dim() < 2:
            return None
        rows, columns = output.shape[-2:]
        signs = torch.randint(0, 2, (rows, 1), generator=random) * 2.0 - 1.0
        errors = torch.rand(columns, generator=random) * eps / 2
        factors = (1 + signs.to(output.device) * errors.to(output.device)).float()
        return (output.float() * factors).to(output.dtype)

    handles = [
        module.register_forward_hook(rounded)
        for module in model.modules()
        if not any(True for _ in module.children())
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
