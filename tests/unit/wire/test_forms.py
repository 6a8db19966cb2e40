"""Forms of text: every way to ask for one gives its grammar, and two are refused."""

import json
from typing import Any

import pytest

from bitinglip import errors
from bitinglip.wire.parse import parse
from bitinglip.wire.text.completions import CompletionRequest
from bitinglip.wire.text.native import TextGenerationRequest
from bitinglip.wire.text.openai import ChatCompletionRequest
from tests.support.jobs import job_context
from workers.protocol import Grammar
from workers.protocol.bounds import MOST_GRAMMAR

BODIES: dict[Any, dict[str, Any]] = {
    TextGenerationRequest: {"model": "m", "prompt": "p"},
    ChatCompletionRequest: {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    CompletionRequest: {"model": "m", "prompt": "p"},
}
SCHEMA = {"type": "object", "properties": {"b": {}, "a": {}}}
SOURCE = json.dumps(SCHEMA)
FORMATS: list[tuple[dict[str, Any] | None, Grammar | None]] = [
    (None, None),
    ({"type": "text"}, None),
    ({"type": "json_object"}, Grammar(kind="json_object", source="")),
    (
        {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}},
        Grammar(
            kind="json_schema",
            source=SOURCE,
            strict=True,
            param="response_format.json_schema.schema",
        ),
    ),
    (
        {"type": "json_schema", "json_schema": {"name": "a", "description": "b", "schema": SCHEMA}},
        Grammar(kind="json_schema", source=SOURCE, param="response_format.json_schema.schema"),
    ),
    (
        {"type": "json_schema", "json_schema": {"name": "a"}},
        Grammar(kind="json_object", source=""),
    ),
    (
        {"type": "json_object", "schema": SCHEMA},
        Grammar(kind="json_schema", source=SOURCE, param="response_format.schema"),
    ),
]


def grammar_of(model: Any, **fields: Any) -> Grammar | None:
    request = parse(model, json.dumps({**BODIES[model], **fields}).encode())
    grammar: Grammar | None = request.to_job(job_context()).work.grammar
    return grammar


@pytest.mark.parametrize("model", BODIES)
@pytest.mark.parametrize(("form", "grammar"), FORMATS)
def test_response_format_gives_its_grammar(
    model: Any, form: dict[str, Any] | None, grammar: Grammar | None
) -> None:
    assert grammar_of(model, response_format=form) == grammar


@pytest.mark.parametrize(
    ("name", "value", "kind", "source"),
    [
        ("regex", "a+", "regex", "a+"),
        ("choice", ["yes", "ż"], "choice", '["yes", "ż"]'),
        ("grammar", 'start: "a"', "lark", 'start: "a"'),
        ("json", SCHEMA, "json_schema", SOURCE),
        ("json", SOURCE, "json_schema", SOURCE),
    ],
)
def test_forms_have_fields_of_their_own(name: str, value: Any, kind: Any, source: str) -> None:
    if name != "json":
        expected = Grammar(kind=kind, source=source, param=name)
        assert grammar_of(TextGenerationRequest, **{name: value}) == expected
    for model in (ChatCompletionRequest, CompletionRequest):
        field = f"guided_{name}"
        assert grammar_of(model, **{field: value}) == Grammar(kind=kind, source=source, param=field)
        expected = Grammar(kind=kind, source=source, param=f"structured_outputs.{name}")
        assert grammar_of(model, structured_outputs={name: value}) == expected


@pytest.mark.parametrize(
    ("model", "fields", "param"),
    [
        (
            TextGenerationRequest,
            {"response_format": {"type": "json_object"}, "regex": "a"},
            "regex",
        ),
        (TextGenerationRequest, {"choice": ["a"], "grammar": 'start: "a"'}, "choice"),
        (
            ChatCompletionRequest,
            {"guided_json": SCHEMA, "structured_outputs": {"regex": "a"}},
            "guided_json",
        ),
        (
            ChatCompletionRequest,
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
        ),
        (
            ChatCompletionRequest,
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
            "response_format.json_schema.name",
        ),
        (ChatCompletionRequest, {"response_format": {"type": "xml"}}, "response_format.type"),
        (ChatCompletionRequest, {"guided_json": "{"}, "guided_json"),
        (ChatCompletionRequest, {"guided_json": "[1]"}, "guided_json"),
        (TextGenerationRequest, {"choice": []}, "choice"),
        (TextGenerationRequest, {"choice": [""]}, "choice[0]"),
        (TextGenerationRequest, {"regex": "a" * (MOST_GRAMMAR + 1)}, "regex"),
        (
            ChatCompletionRequest,
            {"guided_json": {"description": "a" * MOST_GRAMMAR}},
            "guided_json",
        ),
    ],
)
def test_form_that_cannot_be_is_refused_by_name(
    model: Any, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        grammar_of(model, **fields)
    assert caught.value.param == param


def test_schema_in_a_string_is_as_deep_as_a_body_may_be() -> None:
    nested = '{"a":' * 100 + "1" + "}" * 100
    with pytest.raises(errors.InvalidRequest, match="deeper"):
        grammar_of(ChatCompletionRequest, guided_json=nested)


def test_unknown_parts_of_a_form_are_told_or_refused() -> None:
    form = {"type": "json_object", "flavour": 1}
    body = json.dumps({**BODIES[ChatCompletionRequest], "response_format": form}).encode()
    assert parse(ChatCompletionRequest, body).ignored() == ["response_format.flavour"]
    with pytest.raises(errors.UnsupportedParameter) as caught:
        grammar_of(TextGenerationRequest, response_format=form)
    assert caught.value.param == "response_format.flavour"
