"""Finds the log-probabilities of prompts that are echoed."""

from collections.abc import Callable

from torch import Tensor

from workers.engines.text.logprobs import PromptLogprobs
from workers.engines.text.plan import Chunk, Plan, Sequence
from workers.engines.text.sampling_params import upload

Scores = list[tuple[Chunk, PromptLogprobs]]


def prompt_scores(plan: Plan, logits: Tensor, alternatives: Callable[[Sequence], int]) -> Scores:
    """Queue the log-probabilities of the tokens that chunks of prompts tell of.

    logits: [their tokens, vocab], chunk after chunk; ``alternatives``: how many a sequence wants.
    """
    scores: Scores = []
    start = 0
    for chunk in plan.prefills:
        if not chunk.scored:
            continue
        end = start + chunk.scored
        told = chunk.sequence.tokens[chunk.start + 1 :][: chunk.scored]
        tokens = upload(logits.device, ints={"tokens": told})["tokens"]
        count = alternatives(chunk.sequence)
        scores.append((chunk, PromptLogprobs(logits[start:end], tokens, count)))
        start = end
    return scores
