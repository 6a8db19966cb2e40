"""Refuses texts that are longer than a model's context, as far as the store knows its tokens."""

from bitinglip.errors import ContextLengthExceeded
from bitinglip.scheduling.job import Job
from bitinglip.work.text import prompts_of
from model_store.manifest import Manifest
from workers.context_length import context_length_error
from workers.protocol import TextJob


def check_length(job: Job, manifest: Manifest, max_context: int | None) -> None:
    """Raise ContextLengthExceeded for a text that cannot fit, whatever its tokens are.

    It would wait and be sent to a worker for nothing. ``max_context``: the model's setting.
    """
    work = job.work
    known = [tokens for tokens in (max_context, manifest.max_context) if tokens]
    longest = manifest.longest_token
    if not isinstance(work, TextJob) or work.drop_turns or not known or not longest:
        return
    context = min(known)
    if work.messages is None:
        param = "prompt"
        sizes = [
            -(-len(each) // longest) if isinstance(each, str) else len(each)
            for each in prompts_of(work)
        ]
    else:
        param = "messages"
        sizes = [-(-sum(len(each.content) for each in work.messages) // longest)]
    tokens = max(sizes, default=0)
    if tokens > context:
        message, details = context_length_error(
            context,
            tokens,
            max_tokens=None if work.clip_max_tokens else work.sampling.max_tokens,
            at_least=True,
        )
        raise ContextLengthExceeded(message, param=param, details=details)
