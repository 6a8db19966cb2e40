"""Draws the next token of each row as the library does, each row from its own generator."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessorList

NOT_A_NUMBER = -1  #: the token of a row whose logits are not finite


class Sampler:
    """Samples by a stage's generation config, with the library's own processors for it."""

    def __init__(self, model: Any, config: Any) -> None:
        prepared, _ = model._prepare_generation_config(config)
        self._draws = bool(prepared.do_sample)
        self._processors: LogitsProcessorList = model._get_logits_processor(
            generation_config=prepared,
            input_ids_seq_length=0,
            encoder_input_ids=None,
            prefix_allowed_tokens_fn=None,
            logits_processor=LogitsProcessorList(),
            device=model.device,
        )

    def choose(self, logits: torch.Tensor, generators: Sequence[torch.Generator]) -> list[int]:
        """Choose one token for each row of (rows, vocabulary); NOT_A_NUMBER where it has none."""
        read = torch.zeros((len(generators), 1), dtype=torch.long, device=logits.device)
        scores = self._processors(read, logits)
        if not self._draws:
            chosen = scores.argmax(-1)
        else:
            scores = torch.softmax(scores, dim=-1)
            chosen = draw(scores, generators)
        # To argmax a NaN is greater than all else, so it is what was chosen if there is one.
        is_number = scores.gather(-1, chosen[:, None])[:, 0].isfinite()
        tokens: list[int] = torch.where(is_number, chosen, NOT_A_NUMBER).tolist()
        return tokens


def draw(chances: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Draw one choice of each row of (rows, choices).

    The generators share the rows evenly, in order. A draw that fails leaves them as they were.
    """
    states = [generator.get_state() for generator in generators]
    try:
        return _draw(chances, generators)
    except RuntimeError:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        raise


def _draw(chances: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Draw, on a CPU, exactly what ``torch.multinomial`` does.

    That takes the greatest of the chances over exponential noise, whose logarithms it computes one
    by one, which is most of its time; these are vectorised.
    """
    even = torch.empty(chances.shape, dtype=torch.float64, device=chances.device)
    for part, generator in zip(even.chunk(len(generators)), generators, strict=True):
        part.uniform_(generator=generator)
    noise = even.neg_().log1p_().neg_().to(chances.dtype)
    return (chances / noise).argmax(-1)
