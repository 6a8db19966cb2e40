"""Makes jobs of the largest shapes that an engine computes, to be run once at load.

Their memory is then measured with the load, and not found out by the first long prompt.
"""

from workers.engines.text.preprocess import PreparedJob, PreparedPrompt
from workers.protocol import Sampling, TextJob

_TOKENS = 3  #: of each answer: the first comes with its prompt, the others in steps of all rows

_STEP_SECONDS = 0.15  #: that a step with a prompt may take
_LEAST_STEP = 256  #: tokens: fewer do not use a card


def largest_jobs(
    *, rows: int, step_tokens: int, context: int, vocab_size: int
) -> list[PreparedJob]:
    """Return a prompt that fills a step, and short ones for all other rows."""
    longest = max(1, min(step_tokens, context - _TOKENS))
    tokens = max(1, min(_TOKENS, context - 1))
    sampling = Sampling(max_tokens=tokens, temperature=1.0, top_p=0.9, ignore_eos=True)
    ids = [(17 + 31 * place) % vocab_size for place in range(longest)]
    return [
        PreparedJob(
            job=TextJob(id=f"warm-up {row}", prompt="", sampling=sampling, stream=False),
            prompts=[PreparedPrompt(ids if row == 0 else ids[:1], tokens)],
            seed=row,
        )
        for row in range(rows)
    ]


def paced(step_tokens: int, tokens: int, seconds: float) -> int:
    """Return how many tokens a step should have, where so many have taken so many seconds.

    All that runs waits for a step, so a prompt's is to be short. Halves of the default only: the
    measured time varies, and the tokens of a step decide how a prompt's sums are rounded.
    """
    while step_tokens > _LEAST_STEP and seconds * step_tokens / tokens > _STEP_SECONDS:
        step_tokens //= 2
    return step_tokens
