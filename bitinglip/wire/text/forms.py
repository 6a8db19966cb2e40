"""Requests for text may hold it to a form: JSON, a schema, a regular expression, a grammar."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from bitinglip.errors import InvalidRequest
from bitinglip.wire.body import Body
from bitinglip.wire.openai_body import Label, OpenAIBody
from bitinglip.wire.parse import check_shape
from workers import protocol
from workers.protocol.bounds import MOST_GRAMMAR

_MAX_CHOICES = 1000

Schema = dict[str, Any]
Source = Annotated[str, Field(min_length=1, max_length=MOST_GRAMMAR)]
Choices = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=1000)]],
    Field(min_length=1, max_length=_MAX_CHOICES),
]


class JsonSchema(Body):
    name: Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")] | None = None
    description: Annotated[str, Field(max_length=10_000)] | None = None
    schema_: Annotated[Schema | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Body):
    """Holds the form of an answer as OpenAI's API writes it; other servers take ``schema`` beside
    it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: Annotated[Schema | None, Field(alias="schema")] = None

    def grammar(self) -> protocol.Grammar | None:
        """Return the grammar of this form; None for any text. Raises InvalidRequest."""
        if self.type == "text":
            return None
        schema, strict, param = self.schema_, False, "response_format.schema"
        if self.type == "json_schema":
            param = "response_format.json_schema"
            if self.json_schema is None:
                raise InvalidRequest(f"'{param}' is missing.", param=param)
            schema, strict = self.json_schema.schema_, bool(self.json_schema.strict)
            param += ".schema"
        if schema is None:
            return protocol.Grammar(kind="json_object", source="")
        return schema_grammar(schema, param, strict=strict)


class OpenAIJsonSchema(JsonSchema, OpenAIBody):
    """Ignores fields that OpenAI's surface does not know."""


class OpenAIResponseFormat(ResponseFormat, OpenAIBody):
    json_schema: OpenAIJsonSchema | None = None


class StructuredOutputs(OpenAIBody):
    """Holds the forms of a text as vLLM writes them: one of them."""

    json_: Annotated[Schema | str | None, Field(alias="json")] = None
    regex: Source | None = None
    choice: Choices | None = None
    grammar: Source | None = None
    json_object: bool | None = None
    whitespace_pattern: Label = None
    disable_any_whitespace: Label = None
    disable_additional_properties: Label = None


class NativeForms(Body):
    """Holds the forms that the native API takes, besides ``response_format``: one of them."""

    response_format: ResponseFormat | None = None
    regex: Source | None = None
    choice: Choices | None = None
    grammar: Annotated[Source | None, Field(description="in Lark's dialect of llguidance")] = None

    def asked_grammar(self) -> protocol.Grammar | None:
        """Return the grammar that is asked for, if one is. Raises InvalidRequest."""
        if self.model_fields_set.isdisjoint(_NATIVE_FORMS):
            return None
        return _only(
            self.response_format,
            _given({"regex": self.regex, "choice": self.choice, "grammar": self.grammar}),
        )


class OpenAIForms(Body):
    """Holds the forms that OpenAI's surface takes: its own, and those of vLLM's clients."""

    response_format: OpenAIResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | str | None = None
    guided_regex: Source | None = None
    guided_choice: Choices | None = None
    guided_grammar: Source | None = None

    def asked_grammar(self) -> protocol.Grammar | None:
        """Return the grammar that is asked for, if one is. Raises InvalidRequest."""
        if self.model_fields_set.isdisjoint(_OPENAI_FORMS):
            return None
        given = _given(
            {
                "guided_json": self.guided_json,
                "guided_regex": self.guided_regex,
                "guided_choice": self.guided_choice,
                "guided_grammar": self.guided_grammar,
            }
        )
        if (other := self.structured_outputs) is not None:
            fields = {
                "json": other.json_,
                "regex": other.regex,
                "choice": other.choice,
                "grammar": other.grammar,
                "json_object": other.json_object or None,
            }
            given |= {f"structured_outputs.{name}": value for name, value in _given(fields).items()}
        return _only(self.response_format, given)


_NATIVE_FORMS = frozenset(NativeForms.model_fields)
_OPENAI_FORMS = frozenset(OpenAIForms.model_fields)


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _only(form: ResponseFormat | None, given: Mapping[str, Any]) -> protocol.Grammar | None:
    """Return the one grammar that is asked for. Raises InvalidRequest for several."""
    grammar = None if form is None else form.grammar()
    if not given:
        return grammar
    field, value = next(iter(given.items()))
    if len(given) > 1 or grammar is not None:
        raise InvalidRequest("A text is held to one form; several are asked for.", param=field)
    kind = field.rpartition(".")[2].removeprefix("guided_")
    match kind:
        case "json":
            return schema_grammar(value, field, strict=False)
        case "json_object":
            return protocol.Grammar(kind="json_object", source="", param=field)
        case "regex":
            return protocol.Grammar(kind="regex", source=value, param=field)
        case "choice":
            source = json.dumps(value, ensure_ascii=False)
            return protocol.Grammar(kind="choice", source=source, param=field)
    return protocol.Grammar(kind="lark", source=value, param=field)


def schema_grammar(schema: Schema | str, param: str, *, strict: bool) -> protocol.Grammar:
    """Return the grammar of a schema in this field. Raises InvalidRequest for a long one."""
    source = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)
    if isinstance(schema, str) and len(source) <= MOST_GRAMMAR:
        _check_object(source, param)
    if len(source) > MOST_GRAMMAR:
        raise InvalidRequest(f"'{param}' is longer than {MOST_GRAMMAR} characters.", param=param)
    return protocol.Grammar(kind="json_schema", source=source, strict=strict, param=param)


def _check_object(source: str, param: str) -> None:
    try:
        check_shape(source.encode())
        schema = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"'{param}' is no JSON.", param=param) from error
    if not isinstance(schema, dict):
        raise InvalidRequest(f"'{param}' is no JSON object.", param=param)
