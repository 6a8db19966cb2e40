"""A worker whose text is what the prompt says in base64, in pieces of a size; else the prompt."""

import base64
from collections.abc import AsyncIterator

from workers import protocol


def say(text: str, size: int = 3) -> str:
    """Return the prompt that makes the worker write a text, so many characters at a time."""
    return f"say {size} {base64.b64encode(text.encode()).decode()}"


async def speak(job: protocol.Job) -> AsyncIterator[protocol.JobEvent]:
    assert isinstance(job, protocol.TextJob)
    prompt = job.prompt if job.prompt is not None else (job.messages or ())[-1].content
    size, text = len(prompt) or 1, prompt
    if prompt.startswith("say "):
        _, number, data = prompt.split(" ")
        size, text = int(number), base64.b64decode(data).decode()
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    wanted = job.sampling.logprobs is not None
    tokens = [protocol.TokenLogprob(token=each, id=1, logprob=-1.0) for each in pieces]
    yield protocol.Started(id=job.id, prompt_tokens=1)
    if job.stream:
        for index, piece in enumerate(pieces):
            logprobs = (tokens[index],) if wanted else ()
            yield protocol.TextDelta(id=job.id, text=piece, index=index, logprobs=logprobs)
    yield protocol.TextDone(
        id=job.id,
        choices=(
            protocol.TextChoice(
                text=text, finish_reason="stop", logprobs=tuple(tokens) if wanted else ()
            ),
        ),
        prompt_tokens=1,
        completion_tokens=len(pieces),
    )
