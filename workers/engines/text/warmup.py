"""Makes jobs of the largest shapes that an engine computes, to be run once at load.

Their memory is then measured with the load, and not found out by the first long prompt.
"""

from workers.engines.text.preprocess import PreparedJob
from workers.protocol import Sampling, TextJob

_TOKENS = 3  #: of each answer: the first comes with its prompt, the others in steps of all rows


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
            prompt=ids if row == 0 else ids[:1],
            max_tokens=tokens,
            seed=row,
        )
        for row in range(rows)
    ]
