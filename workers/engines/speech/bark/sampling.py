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
            device=model.device,
        )

    def choose(self, logits: torch.Tensor, generators: list[torch.Generator]) -> list[int]:
        """One token for each row of (rows, vocabulary)."""
        read = torch.zeros((len(generators), 1), dtype=torch.long, device=logits.device)
        scores = self._processors(read, logits)
        if not self._draws:
            chosen = scores.argmax(-1)
        else:
            chances = torch.softmax(scores, dim=-1)
            chosen = torch.cat(
                [
                    torch.multinomial(chances[row], 1, generator=generator)
                    for row, generator in enumerate(generators)
                ]
            )
        tokens: list[int] = chosen.tolist()
        return tokens
