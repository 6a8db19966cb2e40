"""Clients and the models that they ask: templates that refuse, none at all, ids with a slash."""

from collections.abc import Iterator

import httpx
import pytest

from tests.support.models.text import TEMPLATE, make_tiny_model
from tests.support.server import Server

CHAT = "/v1/chat/completions"
#: as Gemma's: it has no place for a system's turn
STRICT = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + TEMPLATE
)
MODELS = {"org/strict": STRICT, "base": None}
USER = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def client(
    shared_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """Provide a client of the shared server, which has these models until the tests are over."""
    with shared_server.client() as client:
        for name, template in MODELS.items():
            folder = tmp_path_factory.mktemp("models") / "model"
            make_tiny_model("llama", folder, template=template)
            asked = {"path": str(folder), "name": name}
            made = client.post("/api/v1/models/import", json=asked)
            assert made.status_code == 201, made.text
        yield client
        for name in MODELS:
            assert client.delete(f"/api/v1/models/{name}").status_code == 204


def test_template_that_takes_no_system_refuses_in_its_own_words(client: httpx.Client) -> None:
    messages = [{"role": "system", "content": "S"}, USER]
    asked = {"model": "org/strict", "messages": messages, "max_tokens": 8}
    refused = client.post(CHAT, json=asked)
    assert refused.status_code == 400, refused.text
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "messages")
    assert "System role not supported" in error["message"]
    streamed = client.post(CHAT, json={**asked, "stream": True})
    assert (streamed.status_code, streamed.json()["error"]["param"]) == (400, "messages")
    answered = client.post(CHAT, json={**asked, "messages": [USER]})
    assert answered.status_code == 200, answered.text


def test_base_model_chat_is_sent_to_completions(client: httpx.Client) -> None:
    refused = client.post(CHAT, json={"model": "base", "messages": [USER], "max_tokens": 8})
    assert refused.status_code == 400, refused.text
    message = refused.json()["error"]["message"]
    assert "no chat template" in message
    assert "/v1/completions" in message
    asked = {"model": "base", "prompt": "hi", "max_tokens": 4}
    assert client.post("/v1/completions", json=asked).status_code == 200
    begun = client.post("/v1/completions", json={**asked, "prompt": [""]})
    assert begun.json()["usage"]["prompt_tokens"] == 1  # the token that begins a text
    refused = client.post("/v1/completions", json={**asked, "prompt": []})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")


@pytest.mark.parametrize("name", ["org/strict", "org%2Fstrict"])
def test_model_with_a_slash_is_shown_as_it_is_listed(client: httpx.Client, name: str) -> None:
    listed = {each["id"]: each for each in client.get("/v1/models").json()["data"]}
    shown = client.get(f"/v1/models/{name}")
    assert (shown.status_code, shown.json()) == (200, listed["org/strict"])
