"""A scripted text engine that thinks, speaks and calls tools, for the surfaces that show these."""

import asyncio
from collections.abc import AsyncIterator

from workers import protocol

CALLS = (
    protocol.ToolCall(id="call-1", name="get_weather", arguments='{"city":"Łódź"}'),
    protocol.ToolCall(id="call-2", name="get_time", arguments="{}"),
)
REASONING, TEXT = "let me see", "it is fine"


async def speak(job: protocol.Job) -> AsyncIterator[protocol.JobEvent]:
    """Do what the last words of the prompt ask for, by ``!think``, ``!call`` and the like."""
    assert isinstance(job, protocol.TextJob)
    asked = next(each.content for each in reversed(job.messages or ()) if each.role != "system")
    if job.count_only:
        words = sum(len(each.content.split()) for each in job.messages or ())
        nothing = protocol.TextChoice(text="", finish_reason="stop")
        yield protocol.TextDone(
            id=job.id, choices=(nothing,), prompt_tokens=words, completion_tokens=0
        )
        return
    if "!refuse" in asked:
        message = "This model's maximum context length is 8 tokens; the prompt is too long."
        yield protocol.Failed(id=job.id, code="CONTEXT_LENGTH_EXCEEDED", message=message)
        return
    yield protocol.Started(id=job.id, prompt_tokens=7)
    choice = choice_for(asked)
    if job.stream:
        for delta in _deltas(job.id, choice):
            yield delta
    if "!wait" in asked:
        await asyncio.sleep(60)
    if "!crash" in asked:
        yield protocol.Failed(id=job.id, code="WORKER_CRASHED", message="it died")
        return
    yield protocol.TextDone(
        id=job.id,
        choices=(choice,),
        prompt_tokens=7,
        completion_tokens=5,
        cached_tokens=3,
        reasoning_tokens=2 if choice.reasoning else 0,
    )


def choice_for(asked: str) -> protocol.TextChoice:
    """Return what is answered to a text."""
    calls = CALLS if "!call" in asked else ()
    return protocol.TextChoice(
        text="" if "!silent" in asked else TEXT,
        finish_reason="length" if "!long" in asked else "tool_calls" if calls else "stop",
        stop="END" if "!stop" in asked else None,
        reasoning=REASONING if "!think" in asked else "",
        tool_calls=calls,
    )


def _deltas(job_id: str, choice: protocol.TextChoice) -> list[protocol.TextDelta]:
    """Cut an answer into pieces of a word, or of three characters of arguments."""
    deltas = [
        protocol.TextDelta(id=job_id, text="", index=0, reasoning=word)
        for word in _words(choice.reasoning)
    ]
    deltas += [protocol.TextDelta(id=job_id, text=word, index=1) for word in _words(choice.text)]
    for index, call in enumerate(choice.tool_calls):
        pieces = [call.arguments[at : at + 3] for at in range(0, len(call.arguments), 3)]
        deltas += [
            protocol.TextDelta(
                id=job_id,
                text="",
                index=2,
                tool_calls=(
                    protocol.ToolCallDelta(
                        index=index, id=call.id, name=call.name, arguments=piece
                    ),
                ),
            )
            for piece in pieces
        ]
    return deltas


def _words(text: str) -> list[str]:
    words = text.split(" ")
    return [*(f"{word} " for word in words[:-1]), words[-1]] if text else []
