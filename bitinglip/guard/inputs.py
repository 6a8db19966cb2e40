"""The texts of a job that a client sent, by the field of the request that holds each."""

from collections.abc import Mapping, Sequence
from typing import assert_never

import msgspec

from workers import protocol


def texts_of(work: protocol.Job) -> dict[str, str]:
    """Return what a client wrote that a model will read; files are not looked into."""
    match work:
        case protocol.TextJob():
            return _prompts(work) if work.messages is None else _messages(work.messages)
        case protocol.ImageJob():
            return {"prompt": work.prompt, "negative_prompt": work.negative_prompt or ""}
        case protocol.SpeechJob():
            return {"text": work.text}
        case protocol.TranscriptionJob():
            return {"prompt": work.prompt or ""}
        case protocol.EmbeddingJob():
            if work.query is None:
                return {f"input[{number}]": text for number, text in enumerate(work.texts)}
            documents = {f"documents[{number}]": text for number, text in enumerate(work.texts)}
            return {"query": work.query, **documents}
        case _:
            assert_never(work)


def _messages(messages: Sequence[protocol.ChatMessage]) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, message in enumerate(messages):
        found[f"messages[{number}].content"] = message.content
        if message.reasoning is not None:
            found[f"messages[{number}].reasoning"] = message.reasoning
        for place, call in enumerate(message.tool_calls):
            found[_arguments(number, place)] = call.arguments
    return found


def with_texts(work: protocol.Job, texts: Mapping[str, str]) -> protocol.Job:
    """Return the job with these texts in place of its own; others stay."""
    if isinstance(work, protocol.TextJob) and work.messages is not None:
        messages = tuple(
            _with_texts(message, number, texts) for number, message in enumerate(work.messages)
        )
        return msgspec.structs.replace(work, messages=messages)
    if isinstance(work, protocol.TextJob) and work.prompts:
        prompts = [texts.get(_field(number), prompt) for number, prompt in enumerate(work.prompts)]
        return msgspec.structs.replace(work, prompts=tuple(prompts))
    if isinstance(work, protocol.EmbeddingJob):
        whole = {**texts_of(work), **texts}
        query = whole.pop("query", None)
        return msgspec.structs.replace(work, query=query, texts=tuple(whole.values()))
    return msgspec.structs.replace(work, **texts)


def has_token_ids(work: protocol.Job) -> bool:
    """Return whether prompts are tokens, whose text only the model's tokenizer knows."""
    return isinstance(work, protocol.TextJob) and any(
        not isinstance(prompt, str) for prompt in work.prompts
    )


def _prompts(work: protocol.TextJob) -> dict[str, str]:
    if not work.prompts:
        return {"prompt": work.prompt or ""}
    return {
        _field(number): prompt
        for number, prompt in enumerate(work.prompts)
        if isinstance(prompt, str)
    }


def _field(number: int) -> str:
    return f"prompt[{number}]"


def _with_texts(
    message: protocol.ChatMessage, number: int, texts: Mapping[str, str]
) -> protocol.ChatMessage:
    calls = tuple(
        msgspec.structs.replace(
            call, arguments=texts.get(_arguments(number, place), call.arguments)
        )
        for place, call in enumerate(message.tool_calls)
    )
    return msgspec.structs.replace(
        message,
        content=texts.get(f"messages[{number}].content", message.content),
        reasoning=texts.get(f"messages[{number}].reasoning", message.reasoning),
        tool_calls=calls,
    )


def _arguments(number: int, place: int) -> str:
    return f"messages[{number}].tool_calls[{place}].function.arguments"
