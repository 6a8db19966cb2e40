"""Finds the log-probabilities of prompts that are echoed."""

from collections.abc import Mapping

import torch
from torch import Tensor

from workers.engines.text.generation import Generation
from workers.engines.text.plan import Chunk, Plan, Sequence
from workers.engines.text.sampler import Logprobs, logprobs_of

Scores = list[tuple[Chunk, list[Logprobs]]]


def prompt_scores(plan: Plan, logits: Tensor, generations: Mapping[Sequence, Generation]) -> Scores:
    """Return the log-probabilities of the tokens that chunks of prompts tell of.

    logits: [their tokens, vocab], chunk after chunk
    """
    scores: Scores = []
    start = 0
    for chunk in plan.prefills:
        if not chunk.scored:
            continue
        end = start + chunk.scored
        told = chunk.sequence.tokens[chunk.start + 1 :][: chunk.scored]
        tokens = torch.tensor(told, device=logits.device)
        count = generations[chunk.sequence].sampling.logprobs or 0
        scores.append((chunk, logprobs_of(logits[start:end], tokens, [count] * len(told))))
        start = end
    return scores
