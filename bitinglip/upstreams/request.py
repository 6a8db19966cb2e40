"""Converts a text job into the body of an OpenAI-compatible request.

Pure, but for the files of pictures.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from bitinglip.upstreams.json_body import JsonBody, picture_url
from bitinglip.wire.text.fields import MAX_TOKENS
from workers.engines.base import Refused
from workers.protocol import ChatMessage, Grammar, Picture, Sampling, TextJob, ToolCall

#: how pictures begin, but for WebP
_PICTURES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif"}


LONG = 1 << 16  #: characters, or tokens: about a millisecond's work
_MANY = 256  #: messages, likewise
_KIND_BYTES = 16  #: of a picture's beginning, which tell its kind
#: fields whose values are a client's own JSON: with integers of any size, and with 1e999
_OWN = ("tools", "response_format", "chat_template_kwargs")


class Request(NamedTuple):
    path: str  #: below the server's address
    body: dict[str, Any]
    pictures: tuple[Path, ...] = ()  #: the files of those in the body, in their order


def request_of(job: TextJob, model: str) -> Request:
    """Return the streamed request that asks an upstream for what a job wants.

    Raises Refused for what the API has no field for.
    """
    _check(job)
    body: dict[str, Any] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        **_sampling(job.sampling),
    }
    if job.n > 1:
        body["n"] = job.n
    if not job.special_tokens:
        body["add_special_tokens"] = False
    if job.messages is None:
        return Request("completions", {**body, **_prompt(job)})
    body["messages"] = [_message(each) for each in job.messages]
    if job.tools:
        body |= _tools(job)
    if job.grammar is not None:
        body["response_format"] = _response_format(job.grammar)
    if job.template_kwargs:
        body["chat_template_kwargs"] = job.template_kwargs
    pictures = [Path(each.source) for message in job.messages for each in message.pictures]
    return Request("chat/completions", body, tuple(pictures))


def _check(job: TextJob) -> None:
    unsupported = {
        "echo": job.echo,
        "best_of": job.best_of is not None,
        "logprobs": job.sampling.logprobs is not None,
        "continue_final_message": job.continue_final,
        "add_generation_prompt": not job.generation_prompt,
        "truncation": job.drop_turns,
        "typical_p": job.sampling.typical_p != 1,
    }
    for field, asked in unsupported.items():
        if asked:
            raise _unsupported(field)
    if job.count_only:
        raise Refused("UNSUPPORTED_PARAMETER", "An upstream's tokens cannot be counted here.")
    if job.grammar is not None and job.messages is None:
        raise _unsupported(job.grammar.param)


def _unsupported(field: str) -> Refused:
    text = f"'{field}' cannot be passed on to the server that this model stands for."
    return Refused("UNSUPPORTED_PARAMETER", text, param=field)


def _sampling(sampling: Sampling) -> dict[str, Any]:
    """Return the fields that differ from what the API does by itself."""
    body: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    if sampling.max_tokens < MAX_TOKENS:
        body["max_tokens"] = sampling.max_tokens
    optional = {
        "seed": sampling.seed,
        "stop": list(sampling.stop) or None,
        "presence_penalty": sampling.presence_penalty or None,
        "frequency_penalty": sampling.frequency_penalty or None,
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias.items()} or None,
        # Not OpenAI's own, but vLLM, llama.cpp and BitingLip know them.
        "top_k": sampling.top_k,
        "min_p": sampling.min_p or None,
        "repetition_penalty": penalty if (penalty := sampling.repetition_penalty) != 1 else None,
        "min_tokens": sampling.min_tokens or None,
        "ignore_eos": sampling.ignore_eos or None,
        "stop_token_ids": list(sampling.stop_token_ids) or None,
    }
    return body | {name: value for name, value in optional.items() if value is not None}


def _prompt(job: TextJob) -> dict[str, Any]:
    if not job.prompts:
        return {"prompt": job.prompt or ""}
    prompts = [each if isinstance(each, str) else list(each) for each in job.prompts]
    return {"prompt": prompts}


def _message(message: ChatMessage) -> dict[str, Any]:
    content: Any = message.content
    if message.pictures:
        content = [_part(each) for each in message.parts()]
    made: dict[str, Any] = {"role": message.role, "content": content}
    if message.name is not None:
        made["name"] = message.name
    if message.reasoning is not None:
        made["reasoning_content"] = message.reasoning
    if message.tool_calls:
        made["tool_calls"] = [_call(each) for each in message.tool_calls]
        made["content"] = made["content"] or None
    if message.tool_call_id is not None:
        made["tool_call_id"] = message.tool_call_id
    return made


def _part(part: str | Picture) -> dict[str, Any]:
    """Return a part of a message; a picture's file is looked into. Raises Refused."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    try:
        kind = picture_kind(Path(part.source))
    except OSError as error:
        raise Refused("INFERENCE_FAILED", "The picture of the request is gone.") from error
    return {"type": "image_url", "image_url": {"url": picture_url(kind)}}


def picture_kind(path: Path) -> str:
    """Return the kind of a picture by its first bytes: it has been looked at as it came.

    Raises OSError.
    """
    with path.open("rb") as file:
        data = file.read(_KIND_BYTES)
    return next((kind for start, kind in _PICTURES.items() if data.startswith(start)), "webp")


def takes_long(job: TextJob) -> bool:
    """Return whether ``request_of`` and ``encoded`` are not for the event loop.

    They are where files are read, or where the request is long or may be.
    """
    messages = job.messages or ()
    if job.tools or job.grammar or job.template_kwargs or job.sampling.logit_bias:
        return True
    if len(messages) > _MANY or any(each.pictures for each in messages):
        return True
    texts = sum(len(text) for each in messages for text in each.texts()) + len(job.prompt or "")
    return texts + sum(map(len, job.prompts)) > LONG


def encoded(request: Request) -> JsonBody:
    """Return the body of a request as JSON.

    Raises Refused for a number that JSON has no form for.
    """
    own = {name: _exact(request.body[name]) for name in _OWN if name in request.body}
    return JsonBody(msgspec.json.encode(request.body | own), request.pictures)


def _exact(value: Any) -> msgspec.Raw:
    """Return a value as JSON, with all that a client wrote in it. Raises Refused."""
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return msgspec.Raw(text.encode())
    except ValueError as error:  # 1e999 is a number to those who read JSON only
        text = "The request holds a number that JSON has no form for."
        raise Refused("INVALID_REQUEST", text) from error


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _tools(job: TextJob) -> dict[str, Any]:
    functions: list[dict[str, Any]] = []
    for tool in job.tools:
        function: dict[str, Any] = {"name": tool.name}
        if tool.description is not None:
            function["description"] = tool.description
        if tool.parameters is not None:
            function["parameters"] = tool.parameters
        if tool.strict:
            function["strict"] = True
        functions.append({"type": "function", "function": function})
    choice: Any = job.tool_choice
    if choice not in ("auto", "none", "required"):
        choice = {"type": "function", "function": {"name": choice}}
    made: dict[str, Any] = {"tools": functions, "tool_choice": choice}
    if not job.parallel_tool_calls:
        made["parallel_tool_calls"] = False
    return made


def _response_format(grammar: Grammar) -> dict[str, Any]:
    match grammar.kind:
        case "json_object":
            return {"type": "json_object"}
        case "json_schema":
            schema = json.loads(grammar.source)
            named = {"name": "answer", "schema": schema, "strict": grammar.strict}
            return {"type": "json_schema", "json_schema": named}
        case _:
            raise _unsupported(grammar.param)
