"""Plain bodies are read without pydantic, and become what pydantic would have made of them."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, model_validator

from bitinglip.errors import BitingLipError
from bitinglip.wire.embedding import native as native_embedding
from bitinglip.wire.embedding import openai as openai_embedding
from bitinglip.wire.parse import parse
from bitinglip.wire.plain import PlainReader, read_plain
from bitinglip.wire.text.completions import CompletionRequest
from bitinglip.wire.text.native import TextGenerationRequest
from bitinglip.wire.text.openai import ChatCompletionRequest

_MODELS: list[type[BaseModel]] = [
    ChatCompletionRequest,
    CompletionRequest,
    TextGenerationRequest,
    native_embedding.EmbeddingRequest,
    openai_embedding.EmbeddingRequest,
]
_TURN = {"role": "user", "content": "Grüße, \U0001f98a\n"}
_PLAIN: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (ChatCompletionRequest, {"model": "m", "messages": [_TURN], "max_tokens": 8}),
    (
        ChatCompletionRequest,
        {
            "model": "m",
            "messages": [
                {"role": "system", "content": ""},
                {"role": "assistant", "content": "a", "name": "n", "reasoning": "r"},
                _TURN,
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 1,
            "top_p": 0.5,
            "stop": ["\n", "END"],
            "seed": -(2**63),
            "n": 2,
        },
    ),
    (CompletionRequest, {"model": "m", "prompt": "Once", "max_tokens": 0, "echo": True}),
    (TextGenerationRequest, {"model": "m", "prompt": "Once", "temperature": 0, "stream": True}),
    (TextGenerationRequest, {"model": "m", "messages": [_TURN], "priority": "low", "timeout": 5}),
    (native_embedding.EmbeddingRequest, {"model": "m", "input": "a text", "truncate": True}),
    (openai_embedding.EmbeddingRequest, {"model": "m", "input": ["a", "b"], "dimensions": 3}),
]

_numbers = (
    st.integers(-3, 25)
    | st.sampled_from([1_000_000, 1_000_001, 2**31, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63) - 1])
    | st.floats(-3, 3)
    | st.sampled_from([2.0, 5.0, 1e300, -0.0])
)
_texts = st.text(max_size=5) | st.sampled_from(["", "user", "assistant", "tool", "low", "high"])
_scalars = st.none() | st.booleans() | _numbers | _texts
_turns = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system", "robot"])},
    optional={
        "content": _texts
        | st.none()
        | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": _texts}), max_size=2),
        "name": _texts,
        "tool_call_id": _scalars,
        "reasoning": _scalars,
        "extra": _scalars,
    },
)
_values = (
    _scalars
    | st.lists(_scalars, max_size=3)
    | st.lists(_turns, max_size=3)
    | st.dictionaries(st.sampled_from(["include_usage", "1", "type"]), _scalars, max_size=2)
)


def _read(model: type[BaseModel], raw: bytes) -> BaseModel | None:
    """Return what pydantic makes of a body; None for one that it refuses."""
    try:
        return parse(model, raw)
    except BitingLipError:
        return None


def _check_same(model: type[BaseModel], raw: bytes) -> None:
    plain = read_plain(model, raw)
    if plain is not None:
        asked = _read(model, raw)
        assert repr(plain) == repr(asked), raw  # which tells 1 from 1.0, as == does not
        assert plain == asked
        assert not asked.model_extra, "the response would name fields that are ignored"


@pytest.mark.parametrize(("model", "body"), _PLAIN)
def test_plain_bodies_are_read_without_pydantic(
    model: type[BaseModel], body: dict[str, Any]
) -> None:
    raw = json.dumps(body).encode()
    assert read_plain(model, raw) is not None
    _check_same(model, raw)


@pytest.mark.parametrize("model", _MODELS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_plain_body_of_any_values_is_what_pydantic_makes(
    model: type[BaseModel], data: st.DataObject
) -> None:
    """Fields near and beyond their bounds, of wrong types, unknown, missing."""
    known = [*model.model_fields, "unknown", "async"]
    body = data.draw(
        st.fixed_dictionaries(
            {"model": st.just("m")}
            | ({"messages": st.lists(_turns, min_size=1, max_size=2)} if _chats(model) else {})
            | ({"prompt": st.just("p")} if model is CompletionRequest else {})
            | ({"input": st.just("i")} if "input" in model.model_fields else {})
        )
    ) | data.draw(st.dictionaries(st.sampled_from(known), _values, max_size=4))
    _check_same(model, json.dumps(body).encode())


def _chats(model: type[BaseModel]) -> bool:
    return model is ChatCompletionRequest


@given(
    example=st.sampled_from(_PLAIN),
    at=st.integers(0, 400),
    cut=st.integers(0, 3),
    put=st.binary(max_size=3)
    | st.sampled_from(
        [b'"', b"\\ud800", b"\\u0000", b",", b"01", b"1.", b"-", b"+1", b"NaN", b"1e400", b"//"]
    )
    | st.sampled_from([b"\xff", b"\xed\xa0\x80", b"\n", b"\x00", b'"model": "x",', b"null", b"{"]),
    ascii_only=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_plain_body_of_any_bytes_is_what_pydantic_makes(
    example: tuple[type[BaseModel], dict[str, Any]], at: int, cut: int, put: bytes, ascii_only: bool
) -> None:
    """JSON that is broken, written twice, or not UTF-8: the two parsers agree on what they read."""
    model, body = example
    raw = json.dumps(body, ensure_ascii=ascii_only).encode()
    at %= len(raw) + 1
    _check_same(model, raw[:at] + put + raw[at + cut :])


@pytest.mark.parametrize(
    "raw",
    [
        b'{"model": "a", "model": "b", "prompt": "p"}',
        b'{"model": 1, "model": "b", "prompt": "p"}',
        b'{"model": "b", "prompt": "p", "n": 1, "n": null}',
        b'\xef\xbb\xbf{"model": "b", "prompt": "p"}',
        b'{"model": "b", "prompt": "\xc3\x28"}',
        b'{"model": "b", "prompt": "\\ud83e\\udd8a \\ud83e"}',
        b'{"model": "b", "prompt": "tab\there"}',
        b'{"model": "b", "prompt": "p", "seed": -0, "temperature": -0}',
        b'{"model": "b", "prompt": "p"} ',
        b'{"model": "b", "prompt": "p"} x',
        b'{"model": "b", "prompt": "p", "temperature": 1e-400}',
        b'{"model": "b", "prompt": "p", "temperature": 0.1000000000000000055511151231257827}',
    ],
)
def test_plain_body_of_unusual_json_is_what_pydantic_makes(raw: bytes) -> None:
    for model in (CompletionRequest, TextGenerationRequest):
        _check_same(model, raw)


def test_plain_reader_refuses_a_class_whose_checks_it_does_not_know() -> None:
    class Checked(BaseModel):
        value: int

        @model_validator(mode="after")
        def _even(self) -> "Checked":
            return self

    class Listed(BaseModel):
        values: list[int] = Field(default_factory=list)

    with pytest.raises(ValueError, match="_even"):
        PlainReader(Checked)
    with pytest.raises(ValueError, match="default"):
        PlainReader(Listed)
    assert PlainReader(Checked, satisfied=("_even",)).read(b'{"value": 3}') == Checked(value=3)
