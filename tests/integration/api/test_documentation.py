"""/docs and /openapi.json: complete, and without anything from another host."""

import json
import re
from typing import Any

import httpx
import jsonschema
import pytest

from bitinglip.api import PUBLIC
from tests.support.api_server import Served
from tests.support.http_client import CHAT, MESSAGES, NATIVE, PROMPT, error_of

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def test_docs_page_loads_only_files_of_this_server(served: Served) -> None:
    page = httpx.get(served.url + "/docs")
    assert page.status_code == 200
    assert page.headers["content-security-policy"] == POLICY
    assert "//" not in page.text  # no address of another host, with a scheme or without
    assert not re.search(r"<script>|<style|style=|\son[a-z]+=", page.text)  # nothing inline
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(addresses) == 4
    for address in addresses:
        if not address.startswith("data:"):
            found = httpx.get(httpx.URL(served.url + "/docs").join(address))
            assert found.status_code == 200, address
            assert len(found.content) > 50
            assert found.headers["content-security-policy"] == POLICY
            kind = "text/css" if address.endswith("css") else "text/javascript"
            assert found.headers["content-type"].startswith(kind)


def test_docs_script_fetches_the_schema_from_this_server_without_a_validator(
    served: Served,
) -> None:
    script = httpx.get(served.url + "/docs/start.js").text
    assert 'url: "openapi.json"' in script
    assert "validatorUrl: null" in script
    assert "//" not in script


@pytest.mark.parametrize("name", ["favicon.png", "..%2F__init__.py", "%2e%2e", "core.py", "x"])
def test_docs_files_are_only_those_of_the_page(served: Served, name: str) -> None:
    error_of(httpx.get(f"{served.url}/docs/{name}"), 404, "NOT_FOUND")


def test_documentation_describes_bodies_errors_and_authentication(client: httpx.Client) -> None:
    assert client.get("/docs").status_code == 200
    schema = client.get("/openapi.json").json()
    operation = schema["paths"][NATIVE]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert "max_tokens" in body["properties"]
    assert "$defs" not in json.dumps(schema)
    assert set(operation["responses"]) == {"200", "202", "default"}
    assert "422" not in schema["paths"]["/api/v1/models/{model_id}"]["get"]["responses"]
    assert schema["security"] == [{"bearer": []}, {"api_key": []}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, MESSAGES),
        ("/v1/completions", PROMPT),
        (NATIVE, PROMPT),
        ("/v1/models", None),
        ("/v1/models/org/deep", None),
        ("/api/v1/models", None),
        ("/v1/audio/voices", None),
        ("/v1/responses", {"model": "demo", "input": "x"}),
        ("/v1/responses/input_tokens", {"model": "demo", "input": "x"}),
        ("/v1/messages", {**MESSAGES, "max_tokens": 9}),
        ("/v1/files", None),
        ("/v1/batches", None),
        ("/api/v1/tasks", None),
        ("/api/v1/keys", None),
        ("/api/v1/limits", None),
        ("/api/v1/usage", None),
        ("/api/v1/audit", None),
        ("/api/v1/audit/verify", None),
        ("/api/v1/workers", None),
        ("/api/v1/cluster/status", None),
        ("/api/v1/auth/token", {}),
        ("/health", None),
        ("/readyz", None),
    ],
)
def test_documentation_describes_what_answers_hold(
    admin: httpx.Client, path: str, body: dict[str, Any] | None
) -> None:
    answer = admin.get(path) if body is None else admin.post(path, json=body)
    assert answer.status_code == 200
    operations = admin.get("/openapi.json").json()["paths"]
    shown = "/v1/models/{model_id}" if path.endswith("org/deep") else path
    operation = operations[shown]["get" if body is None else "post"]
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.validate(answer.json(), schema)
    assert schema["required"]


def test_documentation_describes_the_answer_of_each_route(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path, operations in paths.items():
        for method, operation in operations.items():
            good = {code: each for code, each in operation["responses"].items() if code[0] == "2"}
            for code, response in good.items():
                kinds = response.get("content", {}).values()
                assert code == "204" or kinds, (method, path)
                assert all(kind["schema"] for kind in kinds), (method, path)


def test_documentation_tells_media_types_and_open_routes(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert "text/event-stream" in paths[CHAT]["post"]["responses"]["200"]["content"]
    assert set(paths["/metrics"]["get"]["responses"]["200"]["content"]) == {"text/plain"}
    assert "image/png" in paths["/api/v1/files/{file_id}"]["get"]["responses"]["200"]["content"]
    keyless = {path for path, each in paths.items() if each.get("get", {}).get("security") == []}
    assert keyless == set(PUBLIC) & set(paths)
