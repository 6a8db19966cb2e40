"""Computes Bark's third stage: the fine acoustic tokens, one codebook after another.

A window of the tokens is read whole and without a mask, once for each codebook to fill; long
sentences take several windows, half of each of which is filled already. The library does one
sentence at a time with attention written out; here windows of several sentences go together.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from workers.engines.speech.bark.gpt import forward_blocks
from workers.engines.speech.bark.sampling import draw


@dataclass(slots=True, eq=False)
class FineState:
    """Holds the tokens (length, codebooks) of a sentence while the fine ones are filled in."""

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
    def own_codes(self) -> torch.Tensor:
        """Return the sentence's own tokens, (codebooks, length)."""
        return self.codes[self.history : self.history + self.length].T


class FineStage:
    """Runs a BarkFineModel by its generation config."""

    def __init__(self, model: Any, config: Any, coarse_codebooks: int, codebook: int) -> None:
        self._model = model
        self._coarse, self._all = coarse_codebooks, config.n_fine_codebooks
        self._size = codebook  #: tokens in a codebook; this number stands for none yet
        self._temperature: float | None = config.temperature
        self._span, self._stride = config.max_fine_input_length, config.max_fine_history_length

    def begin(self, coarse: torch.Tensor, voice: torch.Tensor | None) -> FineState:
        """Begin a sentence.

        ``coarse`` has the shape (length, coarse codebooks), ``voice`` (all codebooks, its length).
        """
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

    def step(self, states: list[FineState], generators: list[torch.Generator]) -> None:
        """Fill the next codebook of each sentence's window."""
        hidden = torch.stack([self._embedded(each) for each in states])
        hidden = forward_blocks(self._model.layers, self._model.config.num_heads, hidden, _attend)
        hidden = self._model.layernorm_final(hidden)
        for row, (state, generator) in enumerate(zip(states, generators, strict=True)):
            self._fill(state, hidden[row], generator)

    def _embedded(self, state: FineState) -> torch.Tensor:
        """Return the sum of the embeddings of the window's codebooks up to the one to fill."""
        start, _ = self._window(state)
        codes = state.codes[start : start + self._span]
        layers = self._model.input_embeds_layers[: state.codebook + 1]
        embeds = [layer(codes[:, number]) for number, layer in enumerate(layers)]
        positions = torch.arange(self._span, device=codes.device)
        position: torch.Tensor = self._model.position_embeds_layer(positions)
        return torch.stack(embeds, dim=-1).sum(dim=-1) + position

    def _fill(self, state: FineState, hidden: torch.Tensor, generator: torch.Generator) -> None:
        start, first = self._window(state)
        head = self._model.lm_heads[state.codebook - self._model.config.n_codes_given]
        logits = head(hidden[first:])[:, : self._size].float()
        total = logits.mean()
        state.total = total if state.total is None else state.total + total
        if self._temperature in (None, 1.0):
            chosen = logits.argmax(-1)
        else:
            chosen = draw(torch.softmax(logits / self._temperature, dim=-1), [generator])
        state.codes[start + first : start + self._span, state.codebook] = chosen
        state.codebook += 1
        if state.codebook == self._all:
            state.window, state.codebook = state.window + 1, self._coarse

    def _window(self, state: FineState) -> tuple[int, int]:
        """Return where the window begins, and the first of its positions to fill."""
        ahead = state.window * self._stride
        start = min(ahead, len(state.codes) - self._span)
        fill = min(state.history + ahead, len(state.codes) - self._stride)
        return start, fill - start


def _attend(
    _layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    return functional.scaled_dot_product_attention(query, key, value)
