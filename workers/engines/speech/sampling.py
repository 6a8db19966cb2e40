"""The next token of each row, drawn as the library draws it, each row from its own generator."""

from typing import Any

import torch
from transformers import LogitsProcessorList


class Sampler:
    """``config``: the stage's generation config; ``processors``: the library's own for it."""

    def __init__(self, model: Any, config: Any) -> None:
        prepared, _ = model._prepare_generation_config(config)
        self._draws = bool(prepared.do_sample)
        self._processors: LogitsProcessorList = model._get_logits_processor(
            generation_config=prepared,
            input_ids_seq_length=0,
            encoder_input_ids=None,
            prefix_allowed_tokens_fn=None,
            logits_processor=LogitsProcessorList(),
            device="cpu",
        )

    def choose(self, logits: torch.Tensor, generators: list[torch.Generator]) -> list[int]:
        """One token for each row of (rows, vocabulary), on the CPU."""
        scores = self._processors(torch.zeros((len(generators), 1), dtype=torch.long), logits)
        if not self._draws:
            return [int(token) for token in scores.argmax(-1)]
        chances = torch.softmax(scores, dim=-1)
        return [
            int(torch.multinomial(chances[row : row + 1], 1, generator=generator))
            for row, generator in enumerate(generators)
        ]
