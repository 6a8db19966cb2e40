"""Bark's third stage: the finer tokens of sound, one codebook after another.

A window of the sound is read whole and without a mask, once for each codebook to fill; long
sounds take several windows, each half of which is there already. The library does one sentence
at a time with attention written out; here windows of several sentences go together.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from workers.engines.speech.bark.gpt import forward_blocks
from workers.engines.speech.bark.sampling import draw


@dataclass(slots=True, eq=False)
class FineState:
    """A sentence's tokens (length, codebooks), of which the finer ones are being filled in."""

    codes: torch.Tensor
    history: int  #: positions of the voice at its beginning
    length: int  #: positions of the sentence itself
    windows: int
    codebook: int  #: the next to fill in this window
    window: int = 0
    total: torch.Tensor | None = None  #: of all logits; on their device, so that no step waits

    @property
    def done(self) -> bool:
        return self.window == self.windows

    @property
    def is_finite(self) -> bool:
        """False if some of the logits that its tokens were drawn from are not numbers."""
        return self.total is None or bool(self.total.isfinite())

    @property
    def sound(self) -> torch.Tensor:
        """The sentence's own tokens, (codebooks, length)."""
        return self.codes[self.history : self.history + self.length].T


class FineStage:
    """``model``: a BarkFineModel; ``config``: its generation config."""

    def __init__(self, model: Any, config: Any, coarse_codebooks: int, codebook: int) -> None:
        self._model = model
        self._coarse, self._all = coarse_codebooks, config.n_fine_codebooks
        self._size = codebook  #: tokens in a codebook; this number stands for none yet
        self._temperature: float | None = config.temperature
        self._span, self._stride = config.max_fine_input_length, config.max_fine_history_length

    def begin(self, coarse: torch.Tensor, voice: torch.Tensor | None) -> FineState:
        """``coarse``: (length, coarse codebooks); ``voice``: (all codebooks, its length)."""
        length = len(coarse)
        codes = functional.pad(coarse, (0, self._all - self._coarse), value=self._size)
        history = 0
        if voice is not None:
            known = voice.T[-self._stride :].to(codes)
            history, codes = len(known), torch.cat([known, codes])
        missing = max(0, self._span - len(codes))
        codes = functional.pad(codes, (0, 0, 0, missing), value=self._size)
        beyond = length - (self._span - history)
        windows = max(0, -(-beyond // self._stride)) + 1
        return FineState(codes, history, length, windows, self._coarse)

    def step(self, sketches: list[FineState], generators: list[torch.Generator]) -> None:
        """Fill the next codebook of each one's window."""
        hidden = torch.stack([self._embedded(each) for each in sketches])
        hidden = forward_blocks(self._model.layers, self._model.config.num_heads, hidden, _attend)
        hidden = self._model.layernorm_final(hidden)
        for row, (sketch, generator) in enumerate(zip(sketches, generators, strict=True)):
            self._fill(sketch, hidden[row], generator)

    def _embedded(self, sketch: FineState) -> torch.Tensor:
        """The window's tokens up to the codebook to fill, laid over each other."""
        start, _ = self._place(sketch)
        codes = sketch.codes[start : start + self._span]
        layers = self._model.input_embeds_layers[: sketch.codebook + 1]
        embeds = [layer(codes[:, number]) for number, layer in enumerate(layers)]
        positions = torch.arange(self._span, device=codes.device)
        position: torch.Tensor = self._model.position_embeds_layer(positions)
        return torch.stack(embeds, dim=-1).sum(dim=-1) + position

    def _fill(self, sketch: FineState, hidden: torch.Tensor, generator: torch.Generator) -> None:
        start, first = self._place(sketch)
        head = self._model.lm_heads[sketch.codebook - self._model.config.n_codes_given]
        logits = head(hidden[first:])[:, : self._size].float()
        total = logits.mean()
        sketch.total = total if sketch.total is None else sketch.total + total
        if self._temperature in (None, 1.0):
            chosen = logits.argmax(-1)
        else:
            chosen = draw(torch.softmax(logits / self._temperature, dim=-1), [generator])
        sketch.codes[start + first : start + self._span, sketch.codebook] = chosen
        sketch.codebook += 1
        if sketch.codebook == self._all:
            sketch.window, sketch.codebook = sketch.window + 1, self._coarse

    def _place(self, sketch: FineState) -> tuple[int, int]:
        """Return where the window begins, and the first of its positions to fill."""
        ahead = sketch.window * self._stride
        start = min(ahead, len(sketch.codes) - self._span)
        fill = min(sketch.history + ahead, len(sketch.codes) - self._stride)
        return start, fill - start


def _attend(
    _layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    return functional.scaled_dot_product_attention(query, key, value)
