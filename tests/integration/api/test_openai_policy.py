"""OpenAI's surface: what is accepted, left out and said, or refused, and in whose words."""

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.api_server import Served, serve
from tests.support.http_client import CHAT, MESSAGES, NATIVE, PROMPT, error_of

COMPLETIONS = "/v1/completions"


@pytest.mark.parametrize(
    "field",
    [
        {"temperature": None, "top_p": None, "stop": None, "seed": None, "stream_options": None},
        {"n": 1, "tools": [], "tool_choice": "auto", "functions": [], "store": False},
        {"tool_choice": "none", "response_format": {"type": "text"}, "modalities": ["text"]},
        {"metadata": {"a": "b"}, "user": "", "safety_identifier": "x", "prompt_cache_key": "k"},
        {"service_tier": "flex", "prompt_cache_retention": "24h", "parallel_tool_calls": True},
        {"top_k": 0}, {"top_k": -1}, {"top_p": 0}, {"stop": ""}, {"stop": ["", "never"]},
        {"stop": [f"stop{number}" for number in range(16)]},
        {"max_tokens": -1}, {"max_tokens": None}, {"max_tokens": 32_000},
        {"max_tokens": 50, "max_completion_tokens": 2},
    ],
    ids=str,
)  # fmt: skip
def test_chat_takes_what_changes_nothing(client: httpx.Client, field: dict[str, Any]) -> None:
    response = client.post(CHAT, json={**MESSAGES, **field})
    assert response.status_code == 200, response.text
    assert "x-ignored-fields" not in response.headers


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None},
        {"role": "assistant"},
        {"role": "assistant", "content": "a", "tool_calls": None, "refusal": None, "audio": None},
        {"role": "user", "content": "a", "name": "ann"},
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"x": "y"}}]},
    ],
    ids=str,
)
def test_chat_takes_turns_as_clients_keep_them(
    client: httpx.Client, message: dict[str, Any]
) -> None:
    turns = [message, {"role": "user", "content": "hi"}]
    response = client.post(CHAT, json={**MESSAGES, "messages": turns})
    assert response.status_code == 200, response.text
    assert "x-ignored-fields" not in response.headers


def test_chat_says_which_fields_it_left_out(client: httpx.Client, admin: httpx.Client) -> None:
    before = ignored_requests(admin)
    turn = {"role": "user", "content": "hi", "copilot_cache_control": {"type": "ephemeral"}}
    asked = {**MESSAGES, "messages": [turn, turn], "verbosity": "low", "no\nname": 1, "void": None}
    response = client.post(CHAT, json=asked)
    assert response.status_code == 200
    named = response.headers["x-ignored-fields"].split(", ")
    assert sorted(named) == ["?", "messages.copilot_cache_control", "verbosity"]
    many = {"model": "demo", "prompt": "a", **{f"x{number}": 1 for number in range(20)}}
    response = client.post(COMPLETIONS, json=many)
    assert len(response.headers["x-ignored-fields"].split(", ")) == 16
    with client.stream("POST", CHAT, json={**MESSAGES, "zzz": 1, "stream": True}) as stream:
        assert stream.headers["x-ignored-fields"] == "zzz"
    assert ignored_requests(admin) == before + 3


def ignored_requests(admin: httpx.Client) -> float:
    [line] = re.findall(r"^bitinglip_ignored_fields_total (.*)$", admin.get("/metrics").text, re.M)
    return float(line)


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"store": True}, "store"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "alloy", "format": "mp3"}}, "audio"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"moderation": {"model": "m"}}, "moderation"),
        ({"prediction": {"type": "content", "content": "a"}}, "prediction"),
    ],
    ids=str,
)
def test_chat_refuses_by_name_what_would_change_the_answer(
    client: httpx.Client, field: dict[str, Any], param: str
) -> None:
    error = client.post(CHAT, json={**MESSAGES, **field}).json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", param)


def test_unknown_fields_are_refused_where_the_settings_say_so(tmp_path: Path) -> None:
    with (
        serve(tmp_path, openai={"unknown_fields": "refuse"}) as served,
        httpx.Client(base_url=served.url, headers=served.headers("inference:text")) as client,
    ):
        response = client.post(CHAT, json={**MESSAGES, "verbosity": "low"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "verbosity"


def test_native_surface_refuses_unknown_fields_and_is_as_lenient_with_numbers(
    client: httpx.Client,
) -> None:
    refused = client.post(NATIVE, json={**PROMPT, "verbosity": "low"})
    assert refused.json()["error"]["code"] == "UNSUPPORTED_PARAMETER"
    lenient = {"top_k": -1, "top_p": 0, "stop_sequences": [""], "max_tokens": -1}
    assert client.post(NATIVE, json={**PROMPT, **lenient}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", CHAT, {**MESSAGES, "model": "nope"}, 404, "model_not_found"),
        ("POST", CHAT, {**MESSAGES, "messages": "hi"}, 400, "invalid_value"),
        ("GET", CHAT, None, 405, "invalid_value"),
        ("GET", "/v1/models", None, 403, "insufficient_scope"),
        ("GET", "/v1/nothing", None, 404, "not_found"),
    ],
)
def test_errors_on_v1_have_openai_s_codes(
    client: httpx.Client, method: str, path: str, body: Any, status: int, code: str
) -> None:
    response = client.request(method, path, json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_wrong_key_on_v1_has_openai_s_code(client: httpx.Client) -> None:
    headers = {"Authorization": "Bearer wrong"}
    on_v1 = client.get("/v1/models", headers=headers).json()["error"]["code"]
    native = client.get("/api/v1/models", headers=headers).json()["error"]["code"]
    assert (on_v1, native) == ("invalid_api_key", "INVALID_API_KEY")


@pytest.mark.parametrize(
    ("path", "instead"),
    [
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/models", "/v1/models"),
        ("/api/chat", "/v1/chat/completions"),
        ("/v1/chat/completion", "/v1/chat/completions"),
    ],
)
def test_unknown_path_names_the_right_one(client: httpx.Client, path: str, instead: str) -> None:
    response = client.post(path, json=MESSAGES)
    assert response.status_code == 404
    error = response.json()["error"]
    assert error["details"] == {"try": instead}
    assert f"try {instead}." in error["message"]


@pytest.mark.parametrize(
    ("path", "what"),
    [("/v1/moderations", "Moderation"), ("/v1/fine_tuning/jobs", "Fine-tuning")],
)
def test_path_of_openai_s_that_is_not_served_says_so(
    client: httpx.Client, path: str, what: str
) -> None:
    response = client.post(path, json={})
    assert response.status_code == 404
    assert f"{what}: not served here." in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/livez", "/health", "/v1/models", "/api/v1/models"])
def test_head_answers_as_get_does_without_its_body(client: httpx.Client, path: str) -> None:
    head, whole = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (whole.status_code, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]


def test_models_are_listed_with_what_clients_ask_of_them(admin: httpx.Client) -> None:
    models = {each["id"]: each for each in admin.get("/v1/models").json()["data"]}
    text, painter = models["org/deep"], models["painter"]
    assert text["context_length"] == text["max_model_len"] > 0
    assert text["architecture"] == {"input_modalities": ["text"], "output_modalities": ["text"]}
    assert painter["architecture"]["output_modalities"] == ["image"]
    assert "context_length" not in painter
    assert (painter["object"], painter["type"]) == ("model", "image")
    for path in ("/v1/models/org/deep", "/v1/models/org%2Fdeep"):
        assert admin.get(path).json() == text


@pytest.mark.parametrize("path", ["/v1/audio/models", "/v1/audio/voices"])
def test_audio_lists_need_a_key_unless_the_settings_open_them(
    served: Served, admin: httpx.Client, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert httpx.get(served.url + path).status_code == 401
    assert admin.get(path).json() == {path.rpartition("/")[2]: []}  # none of its models speaks
    openai = served.services.settings.openai
    monkeypatch.setitem(openai.__dict__, "public_audio_lists", True)
    assert httpx.get(served.url + path).status_code == 200
    assert httpx.get(served.url + path, headers={"x-api-key": "wrong"}).status_code == 401


@pytest.mark.parametrize("path", [CHAT, NATIVE])
def test_session_name_is_bounded(client: httpx.Client, path: str) -> None:
    body = MESSAGES if path == CHAT else PROMPT
    kept = client.post(path, json=body, headers={"x-session-id": "one"})
    assert kept.status_code == 200, kept.text
    refused = client.post(path, json=body, headers={"x-session-id": "x" * 300})
    assert error_of(refused, 400, "INVALID_REQUEST")["param"] == "X-Session-ID"
