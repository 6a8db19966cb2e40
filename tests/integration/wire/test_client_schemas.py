"""The official packages' types beside our requests: no field of theirs is passed over.

Requests are generated from the types, so a new version of the package that knows more fails here.
The packages take seconds to import, so the tests alone do it, and each goes through many cases.
"""

import json
import re
import typing
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from bitinglip.errors import InvalidRequest, UnsupportedParameter
from bitinglip.wire.anthropic.messages import CountTokensRequest, MessagesRequest
from bitinglip.wire.embedding.openai import EmbeddingRequest
from bitinglip.wire.image.openai import ImageEditRequest, ImagesRequest
from bitinglip.wire.openai_body import OpenAIRequest, treatments
from bitinglip.wire.parse import parse
from bitinglip.wire.responses.request import ResponsesRequest
from bitinglip.wire.responses.tools import LEFT_OUT
from bitinglip.wire.schema import schema_of
from bitinglip.wire.speech.openai import SpeechRequest
from bitinglip.wire.text.completions import CompletionRequest
from bitinglip.wire.text.openai import ChatCompletionRequest
from bitinglip.wire.transcription.openai import TranscriptionRequest, TranslationRequest

Model = type[OpenAIRequest]
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
MESSAGE: dict[str, Any] = {**CHAT, "max_tokens": 1}
#: our request, where the package's type is, a request as small as may be
SURFACES: dict[Model, tuple[str, dict[str, Any]]] = {
    ChatCompletionRequest: (
        "openai.types.chat.completion_create_params:CompletionCreateParamsStreaming",
        CHAT,
    ),
    CompletionRequest: (
        "openai.types.completion_create_params:CompletionCreateParamsStreaming",
        {"model": "m", "prompt": "p"},
    ),
    ResponsesRequest: (
        "openai.types.responses.response_create_params:ResponseCreateParamsStreaming",
        {"model": "m", "input": "a"},
    ),
    MessagesRequest: (
        "anthropic.types.message_create_params:MessageCreateParamsStreaming",
        MESSAGE,
    ),
    CountTokensRequest: (
        "anthropic.types.message_count_tokens_params:MessageCountTokensParams",
        {"model": "m", "messages": MESSAGE["messages"]},
    ),
    EmbeddingRequest: (
        "openai.types.embedding_create_params:EmbeddingCreateParams",
        {"model": "m", "input": "a"},
    ),
    ImagesRequest: (
        "openai.types.image_generate_params:ImageGenerateParamsStreaming",
        {"model": "m", "prompt": "p"},
    ),
    ImageEditRequest: (
        "openai.types.image_edit_params:ImageEditParamsStreaming",
        {"model": "m", "prompt": "p"},
    ),
    SpeechRequest: (
        "openai.types.audio.speech_create_params:SpeechCreateParams",
        {"model": "m", "input": "a"},
    ),
    TranscriptionRequest: (
        "openai.types.audio.transcription_create_params:TranscriptionCreateParamsStreaming",
        {"model": "m"},
    ),
    TranslationRequest: (
        "openai.types.audio.translation_create_params:TranslationCreateParams",
        {"model": "m"},
    ),
}
#: parts of forms, which are no fields of the request
FILES = {"file", "image", "mask", "markup"}
#: given to chat templates that know them, else ignored and said
GIVEN_TO_TEMPLATES = {"reasoning_effort", "verbosity"}
MOST_DEPTH = 5
_PLAIN: dict[Any, tuple[Any, ...]] = {
    str: ("text",),
    object: ("text",),
    int: (1,),
    float: (0.5, 1),
    bool: (True, False),
    type(None): (None,),
}
_TRANSPARENT = (Union, UnionType, typing.Required, typing.NotRequired)


@cache
def official(path: str) -> Any:
    """Return a type of a package: ``module:name``."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def values(hint: Any, depth: int = 0) -> Iterator[Any]:
    """Yield values of a type, one or more of each alternative; nothing for files."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint in _PLAIN:
        yield from _PLAIN[hint]
    elif origin is Literal:
        yield from inner
    elif typing.is_typeddict(hint):
        yield from objects(hint, depth)
    elif origin is dict:
        yield from ({}, {"name": "text"})
    elif origin in _TRANSPARENT:
        for each in inner:
            yield from values(each, depth)
    elif len(inner) == 1 and depth < MOST_DEPTH:  # Iterable, List and their kind
        yield from ([each] for each in values(inner[0], depth + 1))


def objects(hint: Any, depth: int) -> Iterator[dict[str, Any]]:
    """Yield the smallest object of a TypedDict, and one with each of its other fields."""
    fields = get_type_hints(hint, include_extras=True)
    needed = [name for name, each in fields.items() if get_origin(each) is typing.Required]
    least = {name: next(values(fields[name], depth + 1), None) for name in needed}
    yield least
    if depth < 2:
        for name in fields.keys() - least.keys():
            yield from ({**least, name: value} for value in values(fields[name], depth + 1))


def least_of(hint: Any) -> dict[str, Any]:
    return next(objects(hint, 0))


def fields_of(hint: Any) -> dict[str, Any]:
    return {name: each for name, each in get_type_hints(hint).items() if name not in FILES}


def outcome(model: Model, asked: dict[str, Any]) -> OpenAIRequest | InvalidRequest:
    try:
        return parse(model, json.dumps(asked).encode())
    except InvalidRequest as error:
        return error


@pytest.mark.parametrize("model", SURFACES)
def test_field_of_openai_s_schema_is_taken_or_refused_by_name(model: Model) -> None:
    for name, hint in fields_of(official(SURFACES[model][0])).items():
        _check_field(model, name, hint)


def _check_field(model: Model, name: str, hint: Any) -> None:
    least = SURFACES[model][1]
    treatment = treatments(model).get(name)
    assert treatment is not None or name in GIVEN_TO_TEMPLATES, name
    for value in [*values(hint), None]:
        if value is None and name in least:
            continue
        found = outcome(model, {**least, name: value})
        if isinstance(found, InvalidRequest):
            assert (found.param or "").startswith(name), found.message
            assert treatment != "label", found.message
            assert value is not None, found.message
            assert isinstance(found, UnsupportedParameter) or treatment == "honoured"
        else:
            assert not found.ignored() or treatment is None
            assert treatment != "refused" or value is None


@pytest.mark.parametrize("model", SURFACES)
def test_documentation_says_what_becomes_of_each_field(model: Model) -> None:
    shown = schema_of(model)["properties"]
    for name, treatment in treatments(model).items():
        described = shown[name].get("description", "")
        assert (treatment == "label") == (described == "accepted, and has no effect"), name
        assert (treatment == "refused") == (described == "not supported"), name
        assert (treatment == "values") == (described == "not supported with other values"), name


def test_field_of_openai_s_messages_is_taken_or_refused_by_name() -> None:
    for hint in get_args(official("openai.types.chat:ChatCompletionMessageParam")):
        for message in objects(hint, 0):
            _check_message(hint, message)


def _check_message(hint: Any, message: dict[str, Any]) -> None:
    nulls = dict.fromkeys(get_type_hints(hint).keys() - least_of(hint).keys())
    for turn in (message, {**nulls, **message}):
        found = outcome(
            ChatCompletionRequest, {"model": "m", "messages": [turn, *CHAT["messages"]]}
        )
        if isinstance(found, InvalidRequest):
            path = re.split(r"[.[\]]+", found.param or "")
            assert path[:2] == ["messages", "0"], found.message
            assert turn[path[2]] is not None, found.message
        else:
            assert not found.ignored()


def test_stream_options_of_openai_s_schema_are_taken() -> None:
    hint = official(
        "openai.types.chat.chat_completion_stream_options_param:ChatCompletionStreamOptionsParam"
    )
    nulls = dict.fromkeys(get_type_hints(hint))
    for options in objects(hint, 0):
        for each in (options, {**nulls, **options}):
            asked = {**CHAT, "stream": True, "stream_options": each}
            assert not parse(ChatCompletionRequest, json.dumps(asked).encode()).ignored(), each


#: the request, where its list of objects lies, and where the package's types of these are
LISTS: list[tuple[Model, str, str]] = [
    (ResponsesRequest, "input", "openai.types.responses:ResponseInputItemParam"),
    (ResponsesRequest, "tools", "openai.types.responses:ToolParam"),
    (MessagesRequest, "tools", "anthropic.types:ToolUnionParam"),
    (MessagesRequest, "messages", "anthropic.types:MessageParam"),
]


@pytest.mark.parametrize(("model", "name", "union"), LISTS)
def test_part_of_a_request_is_taken_or_refused_by_name(model: Model, name: str, union: str) -> None:
    kinds = official(union)
    parts = [part for kind in get_args(kinds) or (kinds,) for part in objects(kind, 0)]
    assert parts
    for part in parts:
        _check_part(model, name, part)


def _check_part(model: Model, name: str, part: dict[str, Any]) -> None:
    found = outcome(model, {**SURFACES[model][1], name: [part]})
    if isinstance(found, InvalidRequest):
        assert (found.param or "").startswith(f"{name}[0]"), found.message
    else:
        assert {each.partition(".")[2] for each in found.ignored()} <= LEFT_OUT


def test_block_of_anthropic_s_messages_is_taken_or_refused_by_name() -> None:
    for kind in get_args(official("anthropic.types:ContentBlockParam")):
        for block in objects(kind, 0):
            _check_block(block)


def _check_block(block: dict[str, Any]) -> None:
    role = "assistant" if "use" in block["type"] or "thinking" in block["type"] else "user"
    turns = [{"role": role, "content": [block]}]
    found = outcome(MessagesRequest, {**MESSAGE, "messages": turns})
    if isinstance(found, InvalidRequest):
        assert (found.param or "").startswith("messages[0].content[0]"), found.message
    else:
        assert not found.ignored()
