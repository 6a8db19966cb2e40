"""Answers held to forms, by the official client and over the native API (fixture ``server``)."""

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import openai
import pydantic
import pytest

from tests.support.http_client import NATIVE
from tests.support.server import Server


class Answer(pydantic.BaseModel, extra="forbid"):
    kind: Literal["a", "żółć"]
    number: Annotated[int, pydantic.Field(ge=0, le=99)]
    sure: bool


ASKED: dict[str, Any] = {
    "model": "demo-text",
    "messages": [{"role": "user", "content": "Answer in JSON."}],
    "temperature": 0,
}


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    url, key = f"{server.url}/v1", server.key
    with openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=60) as client:
        yield client


def test_answer_is_parsed_into_its_model(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(**ASKED, response_format=Answer)
    assert isinstance(answer.choices[0].message.parsed, Answer)
    with client.chat.completions.stream(**ASKED, response_format=Answer) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == answer.choices[0].message.parsed
    assert final.choices[0].finish_reason == "stop"


def test_schema_that_cannot_be_kept_to_is_refused_with_the_reason(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**ASKED, response_format=form)
    assert caught.value.param == "response_format.json_schema.schema"
    assert "not" in caught.value.message


def test_fields_of_other_servers_hold_a_text_too(client: openai.OpenAI) -> None:
    for more in ({"guided_choice": ["x", "yz"]}, {"structured_outputs": {"choice": ["x", "yz"]}}):
        answer = client.completions.create(model="demo-text", prompt="a", extra_body=more)
        assert answer.choices[0].text in ("x", "yz")


def test_model_that_knows_no_forms_refuses_them(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            **{**ASKED, "model": "demo-echo"}, response_format={"type": "json_object"}
        )
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "response_format")


@pytest.mark.parametrize(
    ("form", "right"),
    [
        ({"regex": "[a-c]{2}-[0-9]"}, re.compile("[a-c]{2}-[0-9]").fullmatch),
        ({"choice": ["x", "yz"]}, lambda text: text in ("x", "yz")),
        ({"grammar": 'start: "f(" /[0-9]/ ")"'}, re.compile(r"f\([0-9]\)").fullmatch),
        (
            {"response_format": {"type": "json_object", "schema": Answer.model_json_schema()}},
            lambda text: Answer.model_validate(json.loads(text)),
        ),
    ],
    ids=["regex", "choice", "grammar", "schema"],
)
def test_native_forms_hold_a_text(server: Server, form: dict[str, Any], right: Any) -> None:
    with server.client() as client:
        body = {"model": "demo-text", "prompt": "a", "max_tokens": 100, **form}
        answer = client.post(NATIVE, json=body)
    assert answer.status_code == 200, answer.text
    assert right(answer.json()["result"]["text"])
